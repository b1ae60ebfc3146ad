"""Batches say where the documents of the corpus are: compared with plain Python on the corpus itself."""

import copy
import itertools
import pickle

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import store_windows
from torch.utils.data import DataLoader

from pipeline import (
    ShardLoader,
    ShardsConfig,
    TokenEmbedding,
    TokenizerConfig,
    WindowConfig,
    WindowDataset,
    embed_batches,
    write_shards,
)
from pipeline.loader.documents import DocumentTable
from pipeline.loader.row_group import DocumentRule, RowBatch

END = 256
NAMES = ("document_ids", "position_ids", "cu_seqlens")


def spell(text, bos):
    """A document's tokens, its end included."""
    return [*([] if bos is None else [bos]), *text.encode(), END]


def cut(texts, *, max_length, stride, tail, documents, bos=None):
    """The windows of the texts: for each, its inputs, its targets, and which document each of these tokens is of."""
    spelt = [spell(text, bos) for text in texts]
    labels = [[document] * len(tokens) for document, tokens in enumerate(spelt)]
    segments = list(zip(spelt, labels, strict=True))
    if documents == "join":  # no end after the last one
        segments = [(list(itertools.chain(*spelt))[:-1], list(itertools.chain(*labels))[:-1])]
    windows = []
    for tokens, of in segments:
        reached = 0  # the last token that is a target
        for start in itertools.count(0, stride):
            stop = min(start + max_length, len(tokens) - 1)
            is_full = start + max_length < len(tokens)
            if not is_full and (tail == "drop" or stop <= max(start, reached)):
                break
            inputs, targets = slice(start, stop), slice(start + 1, stop + 1)
            new = [place > reached for place in range(start + 1, stop + 1)]
            windows.append((tokens[inputs], tokens[targets], of[inputs], of[targets], new))
            reached = stop
    return windows


def read_packed(path, texts, bos=None):
    """The same of packed windows. Which documents share one is the writer's choice; their tokens are the corpus's."""
    stream = list(itertools.chain(*(spell(text, bos) for text in texts)))
    endings = {tuple(spell(text, bos))[-size:] for text in texts for size in range(1, len(spell(text, bos)) + 1)}
    windows = []
    for row in pq.read_table(path / "data").to_pylist():
        inputs, targets, of = [], [], []
        for number, size in enumerate(row["segment_lengths"]):
            tokens = row["input_ids"][len(inputs) : len(inputs) + size]
            assert number > 0 or tokens == stream[row["start"] : row["start"] + size]
            is_end = tokens[-1] == END
            assert not is_end or tuple(tokens) in endings, "whole, or the rest of one"
            inputs += tokens
            targets += [*tokens[1:], -100 if is_end else stream[row["start"] + size]]
            of += [number] * size
        windows.append((inputs, targets, of, of, [True] * len(of)))
    assert sum(len(window[0]) for window in windows) == len(stream), "each token once"
    return windows


def describe(window, max_length):
    """What a batch says of a window's inputs: documents, positions, and the sizes of its pieces; plain lists."""
    of = window[2] if window else []
    groups = [len(list(group)) for _, group in itertools.groupby(of)]
    rest = max_length - len(of)
    documents = [number for number, size in enumerate(groups) for _ in range(size)] + [-1] * rest
    sizes = [*groups, *([rest] if rest else [])]
    return documents, [place for size in sizes for place in range(size)], sizes


def expected_targets(window, max_length, *, score, score_document_starts):
    _, targets, of_inputs, of_targets, new = window or ([], [], [], [], [])
    counted = [
        target if (score == "all" or is_new) and (score_document_starts or before == document) else -100
        for target, before, document, is_new in zip(targets, of_inputs, of_targets, new, strict=True)
    ]
    return counted + [-100] * (max_length - len(counted))


def check(batch, windows, max_length, *, sources=None, score="all", score_document_starts=True):
    """Compare a batch with the windows of the corpus."""
    numbers = batch.window_ids.tolist()
    of = [windows] * len(numbers) if sources is None else [sources[source] for source in batch.source_ids.tolist()]
    found = [None if number < 0 else of_row[number] for of_row, number in zip(of, numbers, strict=True)]
    rows = [describe(window, max_length) for window in found]
    assert batch.document_ids.tolist() == [documents for documents, _, _ in rows]
    assert batch.position_ids.tolist() == [positions for _, positions, _ in rows]
    sizes = [size for _, _, row in rows for size in row]
    assert batch.cu_seqlens.tolist() == [0, *itertools.accumulate(sizes)]
    assert batch.max_seqlen == max(sizes)
    targets = [
        expected_targets(window, max_length, score=score, score_document_starts=score_document_starts)
        for window in found
    ]
    assert batch.target_ids.tolist() == targets
    assert batch.num_targets == sum(target != -100 for row in targets for target in row)
    for window, inputs in zip(found, batch.input_ids.tolist(), strict=True):
        assert window is None or inputs[: len(window[0])] == window[0]


def write(folder, texts, *, bos=None, order="sequential", **window):
    return write_shards(
        folder / "shards",
        corpus=texts,
        tokenizer=TokenizerConfig(name="bytes", bos=bos),
        window=WindowConfig(**window),
        shards=ShardsConfig(windows_per_group=3, order=order, overwrite=True),
        cache=folder / "cache",
    )


@st.composite
def corpora(draw):
    """Texts whose lengths are near that of a window, and how windows are cut."""
    max_length = draw(st.integers(1, 9))
    near = st.sampled_from([1, 2, max(1, max_length - 1), max_length, max_length + 1, 2 * max_length, 3 * max_length])
    sizes = draw(st.lists(near, min_size=1, max_size=8))
    letters = itertools.cycle("abcdefghijklmnopqrstuvwxyz")
    texts = [f"{number}{''.join(itertools.islice(letters, size - 1))}"[:size] for number, size in enumerate(sizes)]
    texts.append(draw(st.sampled_from(["x" * 30, "<|endoftext|> is a name" * 2])))
    return {
        "texts": texts,
        "max_length": max_length,
        "stride": draw(st.integers(1, max_length)),
        "tail": draw(st.sampled_from(["drop", "pad"])),
        "documents": draw(st.sampled_from(["join", "separate", "pack"] if max_length > 1 else ["join", "separate"])),
        "bos": draw(st.sampled_from([None, 300, END, 70_000])),
    }


@pytest.mark.slow
@given(
    corpus=corpora(),
    score=st.sampled_from(["all", "new"]),
    score_document_starts=st.booleans(),
    batch_size=st.integers(1, 5),
)
@settings(max_examples=30)
def test_batches_say_where_the_documents_of_the_corpus_are(
    tmp_path_factory, corpus, score, score_document_starts, batch_size
):
    folder = tmp_path_factory.mktemp("documents")
    length, is_packed = corpus["max_length"], corpus["documents"] == "pack"
    windows = [] if is_packed else cut(**corpus)
    if is_packed:
        del corpus["stride"], corpus["tail"]  # they have no meaning there
    elif not windows:
        return
    report = write(folder, **corpus)
    windows = windows or read_packed(report.path, corpus["texts"], corpus["bos"])
    options = {"score": score, "score_document_starts": score_document_starts}
    given = {**options, "document_ids": True, "batch_size": batch_size, "drop_last": False}
    cut_again = {name: corpus[name] for name in ("max_length", "stride", "tail", "documents") if name in corpus}
    store = store_windows(folder / f"cache/stores/{report.manifest.store}.json", **cut_again)
    for loader in (
        ShardLoader(report.path, shuffle="none", **given),
        ShardLoader(report.path, shuffle="lanes", lanes=2, rank=1, world_size=2, **given),
        ShardLoader(store, shuffle="full", **given),
        ShardLoader(report.path, shuffle="full", device="cpu", **given),
    ):
        for batch in loader:
            check(batch, windows, length, **options)
    dataset = WindowDataset(report.path, document_ids=True, **options)
    assert len(dataset) == len(windows)
    for number, item in enumerate(dataset[:]):
        documents, positions, _ = describe(windows[number], length)
        assert item["document_ids"].tolist() == documents
        assert item["position_ids"].tolist() == positions
        assert item["target_ids"].tolist() == expected_targets(windows[number], length, **options)


TEXTS = ["one two three", "four", "five six seven", "x" * 70, "y", "z" * 32, "w" * 31, "v" * 33]
PAD = {"max_length": 32, "tail": "pad", "documents": "separate"}


@pytest.fixture(scope="module")
def padded(tmp_path_factory):
    return write(tmp_path_factory.mktemp("padded"), TEXTS, **PAD).path


@pytest.fixture(scope="module")
def joined(tmp_path_factory):
    return write(tmp_path_factory.mktemp("joined"), TEXTS, max_length=16, stride=7).path


def test_padding_belongs_to_no_document_and_is_one_piece(padded):
    batch = next(iter(ShardLoader(padded, batch_size=4, shuffle="none", document_ids=True)))
    assert batch.document_ids[:2].tolist() == [[0] * 13 + [-1] * 19, [0] * 4 + [-1] * 28]
    assert batch.cu_seqlens.tolist() == [0, 13, 32, 36, 64, 78, 96, 128]
    assert batch.cu_seqlens.dtype == torch.int32
    assert batch.max_seqlen == 32
    assert type(batch.max_seqlen) is int
    assert int((batch.position_ids == 0).sum()) == len(batch.cu_seqlens) - 1


def test_a_row_that_only_fills_is_padding_from_end_to_end(joined):
    *_, last = ShardLoader(joined, batch_size=8, shuffle="none", drop_last=False, document_ids=True)
    filling = last.window_ids == -1
    assert filling.any()
    assert (last.document_ids[filling] == -1).all()
    assert (last.document_ids[~filling] >= 0).all()
    assert last.cu_seqlens.tolist()[-int(filling.sum()) - 1 :] == list(range(128 - 16 * int(filling.sum()), 129, 16))


def same(one, other):
    for name in ("input_ids", "target_ids", "window_ids", *NAMES):
        assert other[name].equal(one[name]), name
        assert other[name].dtype == one[name].dtype
    assert (other.max_seqlen, other.num_targets) == (one.max_seqlen, one.num_targets)


@pytest.mark.parametrize("starts", [True, False])
def test_documents_are_the_same_wherever_a_batch_is_made(padded, joined, starts):
    for path in (padded, joined):
        given = {"batch_size": 3, "shuffle": "none", "drop_last": False, "document_ids": True}
        given["score_document_starts"] = starts
        here = list(ShardLoader(path, **given))
        for loader in (
            ShardLoader(path, workers=2, **given),
            DataLoader(ShardLoader(path, **given), batch_size=None, num_workers=2),
            ShardLoader(path, device="cpu", **given),
        ):
            for one, other in zip(here, loader, strict=True):
                same(one, other)
        for batch in here:
            same(batch, batch.to("cpu"))
            same(batch, copy.copy(batch))
            same(batch, pickle.loads(pickle.dumps(batch)))
            same(batch, pickle.loads(pickle.dumps(batch)).to("cpu"))


def test_a_pickled_batch_has_its_own_documents_alone(joined):
    batches = list(ShardLoader(joined, batch_size=2, shuffle="none", document_ids=True))
    sizes = [len(pickle.dumps(batch.documents)) for batch in batches]
    assert max(sizes) < 2_000, "not those of the batches that were read with it"


@pytest.mark.parametrize("bos", [None, END])
def test_a_mixture_tells_the_documents_of_each_source(tmp_path, bos):
    one = {"texts": TEXTS, "max_length": 16, "stride": 5, "tail": "pad", "documents": "join", "bos": bos}
    two = {**one, "texts": TEXTS[::-1], "stride": 16, "documents": "separate"}
    three = {"texts": TEXTS, "max_length": 16, "documents": "pack", "bos": bos}
    paths = []
    for number, corpus in enumerate((one, two, three)):
        (tmp_path / str(number)).mkdir()
        paths.append(write(tmp_path / str(number), **corpus).path)
    sources = [cut(**one), cut(**two), read_packed(paths[2], TEXTS, bos)]
    for shuffle in ("full", "lanes"):
        options = {"score_document_starts": False}
        for batch in ShardLoader(paths, batch_size=5, shuffle=shuffle, lanes=4, document_ids=True, **options):
            check(batch, None, 16, sources=sources, **options)


def test_the_name_of_the_end_token_ends_nothing_and_the_token_does(tmp_path):
    text = "ab<|endoftext|>cd"
    found = {}
    for special_text in ("literal", "control"):
        path = write_shards(
            tmp_path / special_text,
            corpus=[text],
            tokenizer=TokenizerConfig(name="bytes", special_text=special_text),
            window=WindowConfig(max_length=64, tail="pad"),
            cache=tmp_path / "cache",
        ).path
        (batch,) = ShardLoader(path, batch_size=1, document_ids=True, score_document_starts=False)
        found[special_text] = batch.cu_seqlens.tolist(), batch.num_targets
    assert found == {"literal": ([0, 16, 64], 16), "control": ([0, 3, 4, 64], 3)}


def test_a_packed_window_within_a_long_document_is_of_one_document_in_a_mixture_too(tmp_path):
    text = "ab<|endoftext|>" + "cd" * 40  # the control token is in the first window, which no document ends in
    paths = []
    for documents in ("join", "pack"):
        tokenizer = TokenizerConfig(name="bytes", special_text="control")
        window = WindowConfig(max_length=16, documents=documents)
        paths.append(write_shards(tmp_path / documents, corpus=[text], tokenizer=tokenizer, window=window).path)
    ids = {0: set(), 1: set()}
    for batch in ShardLoader(paths, batch_size=1, shuffle="full", document_ids=True):
        real = batch.document_ids[batch.document_ids >= 0]
        ids[int(batch.source_ids)] |= set(real.tolist())
    assert ids == {0: {0, 1}, 1: {0}}


def test_a_damaged_row_group_belongs_to_no_document(tmp_path):
    for documents in ("join", "pack"):
        path = write(tmp_path, TEXTS, max_length=8, documents=documents).path
        shard = min((path / "data").iterdir())
        content = bytearray(shard.read_bytes())
        at = pq.read_metadata(shard).row_group(1).column(0).data_page_offset
        content[at + 30] ^= 255
        shard.write_bytes(content)
        loader = ShardLoader(path, batch_size=4, shuffle="full", document_ids=True, on_bad="fill")
        with pytest.warns(UserWarning, match="Its windows come as rows that only fill"):
            batches = list(loader)
        filling = [(batch, batch.window_ids == -1) for batch in batches]
        assert sum(int(rows.sum()) for _, rows in filling) == 3
        for batch, rows in filling:
            assert (batch.document_ids[rows] == -1).all()
            assert (batch.document_ids[~rows][:, 0] == 0).all()


def test_a_batch_moves_shows_and_names_its_documents(joined):
    batch = next(iter(ShardLoader(joined, batch_size=2, shuffle="none", document_ids=True)))
    names = ["input_ids", "target_ids", "window_ids", *NAMES, "max_seqlen"]
    assert batch.keys() == names
    assert list(dict(batch)) == names
    assert batch["max_seqlen"] == batch.max_seqlen
    assert batch["num_targets"] == batch.num_targets == 32
    x, y = batch
    assert (x, y) == (batch.input_ids, batch.target_ids)
    assert "also document_ids, position_ids, cu_seqlens, max_seqlen" in repr(batch)
    assert f"<th>max_seqlen</th><td>{batch.max_seqlen}</td>" in batch._repr_html_()
    assert "<th>cu_seqlens</th><td>int32 [" in batch._repr_html_()
    (embedded,) = embed_batches([batch], TokenEmbedding(257, 4, 16))
    same(batch, embedded)
    for moved in (batch.to("meta"), embedded.to("meta")):
        for name in NAMES:
            assert moved[name].is_meta
            assert moved[name].shape == batch[name].shape
        assert moved.max_seqlen == batch.max_seqlen
    plain = next(iter(ShardLoader(joined)))
    assert [plain.document_ids, plain.position_ids, plain.cu_seqlens, plain.max_seqlen] == [None] * 4
    assert plain.keys() == ["input_ids", "target_ids", "window_ids"]


def test_inputs_that_are_changed_in_place_have_the_documents_that_were_read(joined):
    given = {"batch_size": 4, "shuffle": "none", "document_ids": True}
    expected = next(iter(ShardLoader(joined, **given)))
    batch = next(iter(ShardLoader(joined, **given)))
    batch.input_ids.fill_(END)
    assert batch.document_ids.equal(expected.document_ids)


def test_the_first_token_of_a_document_is_no_target_by_eye(tmp_path):
    path = write(tmp_path, ["ab", "c", "defg"], max_length=3, stride=2).path
    loader = ShardLoader(path, batch_size=3, shuffle="none", score_document_starts=False)
    (batch, *_) = loader
    # a b | c | d e f g: windows "ab|", "|c|", "|de"
    assert batch.input_ids.tolist() == [[97, 98, END], [END, 99, END], [END, 100, 101]]
    assert batch.target_ids.tolist() == [[98, END, -100], [-100, END, -100], [-100, 101, 102]]
    assert batch.num_targets == 5
    assert batch.document_ids is None, "not asked for"


@pytest.mark.parametrize("bos", [300, END])
def test_a_start_token_is_the_first_token_of_its_document(tmp_path, bos):
    path = write(tmp_path, ["ab", "c", "defg"], bos=bos, max_length=10).path
    (batch,) = ShardLoader(path, batch_size=1, shuffle="none", score_document_starts=False)
    # start a b end start c end start d e f: each start but the first, which is no target, would be guessed
    assert batch.target_ids.tolist() == [[97, 98, END, -100, 99, END, -100, 100, 101, 102]]


def test_a_dataset_of_pairs_has_no_document_ids(joined):
    with pytest.raises(ValueError, match="document_ids: items of pairs=True are"):
        WindowDataset(joined, pairs=True, document_ids=True)
    x, y = WindowDataset(joined, pairs=True, score_document_starts=False)[0]
    assert (x == END).equal(y == -100)


@pytest.mark.parametrize("reader", [ShardLoader, WindowDataset])
@pytest.mark.parametrize("name", ["document_ids", "score_document_starts"])
def test_a_switch_that_is_no_truth_value_is_refused(joined, reader, name):
    with pytest.raises(ValueError, match=f"{name}: must be true or false; got 'false'"):
        reader(joined, **{name: "false"})


@given(
    width=st.sampled_from([1, 2, 100, 127, 128, 129, 300]),
    gaps=st.lists(st.integers(0, 200), max_size=30),
    padding=st.lists(st.integers(0, 300), min_size=4, max_size=4),
    batch_size=st.sampled_from([1, 2, 4]),
    is_prepared=st.booleans(),
)
def test_a_table_tells_what_reading_token_by_token_tells(width, gaps, padding, batch_size, is_prepared):
    """Rows short and long, so that the numbers in them take one byte or two; made ahead of time, or when looked at."""
    ids_BT1 = np.zeros((4, width + 1), np.uint16)
    ends = np.cumsum(gaps, dtype=np.int64)
    ids_BT1.flat[ends[ends < ids_BT1.size]] = 9
    to_B = np.clip(width + 1 - np.array(padding), 0, width).astype(np.int32)  # most rows have a padding
    bounds_B2 = np.stack([np.zeros(4, np.int32), to_B], axis=1)
    looked_at = {"document_ids", "position_ids"} if is_prepared else set()
    rows, rule = RowBatch(ids_BT1, bounds_B2, None), DocumentRule(9)
    table = DocumentTable(rows, rule, batch_size=batch_size, looked_at=looked_at).prepare()
    for number in range(4 // batch_size):
        found, sizes = table.documents(number), []
        for row in range(batch_size):
            of, positions, before = [], [], None
            stop = int(to_B[number * batch_size + row])
            for place, token in enumerate(ids_BT1[number * batch_size + row, :-1].tolist()):
                is_first = place in (0, stop) or (place < stop and before == 9)
                positions.append(0 if is_first else positions[-1] + 1)
                of.append(-1 if place >= stop else (of[-1] if of else -1) + is_first)
                before = token
            assert found.document_ids[row].tolist() == of
            assert found.position_ids[row].tolist() == positions
            firsts = [place for place, position in enumerate(positions) if not position]
            sizes += np.diff([*firsts, width]).tolist()
        assert found.cu_seqlens.tolist() == [0, *itertools.accumulate(sizes)]
        assert found.max_seqlen == max(sizes)
