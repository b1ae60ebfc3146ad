"""With `score=new` each token of a text is a target exactly once, by the window that gives it the longest context."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import sections

from pipeline import ShardLoader, WindowDataset, write_shards

TEXTS = ["abcdefghijklmnop", "q", "rstuvwxyz0123456789ABCDEFGHIJ", "KL", "MNOPQRST", "UVWXYZ" * 5]


def write(folder, *, max_length, stride, tail, documents, group=3, order="sequential"):
    for number, text in enumerate(TEXTS):
        (folder / "texts").mkdir(exist_ok=True)
        (folder / "texts" / f"{number}.txt").write_text(text)
    report = write_shards(
        folder / f"shards-{max_length}-{stride}-{tail}-{documents}-{group}-{order}",
        **sections(
            corpus="text",
            corpus_path=str(folder / "texts"),
            cache_path=folder / "cache",
            tokenizer="bytes",
            max_length=max_length,
            stride=stride,
            tail=tail,
            documents=documents,
            windows_per_group=group,
            windows_per_shard=2 * group,
            order=order,
        ),
    )
    return report.path


def slow_targets(folder, *, max_length, stride, tail, documents):
    """For each window in stored order, its targets that no earlier window of its text has scored; plain lists."""
    bodies = [list(text.encode()) for text in TEXTS]
    stream = list(itertools.chain.from_iterable([*body, 256] for body in bodies))
    firsts = [0, *itertools.accumulate(len(body) + 1 for body in bodies[:-1])]
    closed = [(first, len(body) + 1) for first, body in zip(firsts, bodies, strict=True)]
    segments = [(0, len(stream) - 1)] if documents == "join" else closed
    windows, every = [], []
    for first, size in segments:
        scored = set()
        for start in itertools.count(first, stride):
            targets = [place for place in range(start + 1, start + 1 + max_length) if place < first + size]
            if not targets or (len(targets) < max_length and (tail == "drop" or not set(targets) - scored)):
                break
            windows.append([stream[place] if place not in scored else -100 for place in targets])
            windows[-1] += [-100] * (max_length - len(targets))
            every += [place for place in targets if place not in scored]
            scored |= set(targets)
    assert len(every) == len(set(every)), "each token is scored once"
    return windows


@pytest.mark.slow
@pytest.mark.parametrize("tail", ["drop", "pad"])
@pytest.mark.parametrize("documents", ["join", "separate"])
@pytest.mark.parametrize(("max_length", "stride"), [(6, 2), (6, 6), (6, 5), (5, 1), (4, 3)])
def test_targets_are_those_of_the_slow_twin(tmp_path, max_length, stride, tail, documents):
    window = {"max_length": max_length, "stride": stride, "tail": tail, "documents": documents}
    path = write(tmp_path, **window)
    expected = slow_targets(tmp_path, **window)
    for shuffle in ("none", "full", "lanes"):
        loader = ShardLoader(path, shuffle=shuffle, lanes=4, score="new", drop_last=False, batch_size=5)
        found = {}
        for batch in loader:
            found |= zip(batch.window_ids.tolist(), batch.target_ids.tolist(), strict=True)
        found.pop(-1, None)
        assert [found[k] for k in range(len(expected))] == expected
    dataset = WindowDataset(path, score="new")
    assert [dataset[k]["target_ids"].tolist() for k in range(len(dataset))] == expected


@given(max_length=st.integers(1, 9), data=st.data())
@settings(max_examples=15)
def test_every_reachable_token_is_scored_once_whatever_the_stride(tmp_path_factory, max_length, data):
    stride = data.draw(st.integers(1, max_length))
    documents = data.draw(st.sampled_from(["join", "separate"]))
    group = data.draw(st.integers(1, 7))
    window = {"max_length": max_length, "stride": stride, "tail": "pad", "documents": documents}
    path = write(tmp_path_factory.mktemp("scoring"), **window, group=group)
    scored = 0
    for batch in ShardLoader(path, shuffle="full", score="new", drop_last=False):
        scored += int((batch.target_ids >= 0).sum())
    lengths = [len(text) for text in TEXTS]
    texts = len(TEXTS) if documents == "separate" else 1
    separators = len(TEXTS) - (documents == "join")
    assert scored == sum(lengths) + separators - texts, "all tokens but the first of each text"


def test_a_small_case_by_eye(tmp_path):
    path = write(tmp_path, max_length=4, stride=2, tail="drop", documents="join")
    batch = next(iter(ShardLoader(path, shuffle="none", score="new", batch_size=3)))
    assert [bytes(row).decode() for row in batch.input_ids.tolist()] == ["abcd", "cdef", "efgh"]
    ignored = "-"
    targets = ["".join(ignored if t < 0 else chr(t) for t in row) for row in batch.target_ids.tolist()]
    assert targets == ["bcde", "--fg", "--hi"]
    every = next(iter(ShardLoader(path, shuffle="none", batch_size=3)))
    assert bool((every.target_ids >= 0).all())
    assert torch.equal(batch.input_ids, every.input_ids)


def test_an_unknown_score_is_refused(tmp_path):
    path = write(tmp_path, max_length=4, stride=2, tail="drop", documents="join")
    with pytest.raises(ValueError, match="score: must be one of all, new; got 'old'"):
        ShardLoader(path, score="old")
    with pytest.raises(ValueError, match="score: must be one of all, new; got 'old'"):
        WindowDataset(path, score="old")


def test_a_shuffled_layout_is_scored_by_where_windows_start_or_refused(tmp_path):
    window = {"max_length": 6, "stride": 2, "tail": "pad"}
    path = write(tmp_path, **window, documents="join", order="shuffled")
    expected = slow_targets(tmp_path, **window, documents="join")
    found = [targets for batch in ShardLoader(path, score="new", batch_size=1) for targets in batch.target_ids.tolist()]
    assert sorted(found) == sorted(expected)
    path = write(tmp_path, **window, documents="separate", order="shuffled")
    with pytest.raises(ValueError, match=r"score=new: these windows are stored shuffled .* shards.order=sequential"):
        ShardLoader(path, score="new")
