"""Damaged and failing storage: an error with the batch that needs it, or rows that only fill; and reading again."""

import errno
import itertools
import json
import logging
import os
import shutil
import warnings
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from support import sections, store_windows

from pipeline import ShardLoader, WindowDataset, write_shards
from pipeline.base import retry
from pipeline.base.retry import PASSING, PAUSES
from pipeline.loader import damage, shard_files
from pipeline.shards import id_pages

ORDERS = ["none", "full", "lanes"]
GROUP = 10  # windows of a row group
SHARD = 40  # and of a shard
BAD_SHARD = 4


@pytest.fixture(scope="module")
def shards(write_text):
    """A data set of 400 windows in 10 shards of 4 row groups."""
    text = "".join(f"{number:07} " for number in range(801))
    return write_text(text, tokenizer="bytes", max_length=16, windows_per_group=GROUP, windows_per_shard=SHARD)


@pytest.fixture
def copy(shards, tmp_path):
    shutil.copytree(shards, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture(autouse=True)
def pauses(monkeypatch):
    """No test waits: what would have been waited is listed."""
    waited = []
    monkeypatch.setattr(retry, "pause", waited.append)
    return waited


def shard_of(folder):
    return folder / f"data/train-{BAD_SHARD:05}-of-00010.parquet"


def flip(file, at):
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)


def flip_a_page(folder):
    file = shard_of(folder)
    flip(file, pq.read_metadata(file).row_group(2).column(0).data_page_offset + 40)
    return range(BAD_SHARD * SHARD + 2 * GROUP, BAD_SHARD * SHARD + 3 * GROUP)


def flip_the_footer(folder):
    flip(shard_of(folder), -100)
    return range(BAD_SHARD * SHARD, (BAD_SHARD + 1) * SHARD)


def cut_short(folder):
    os.truncate(shard_of(folder), 500)
    return range(BAD_SHARD * SHARD, (BAD_SHARD + 1) * SHARD)


def take_away(folder):
    shard_of(folder).unlink()
    return range(BAD_SHARD * SHARD, (BAD_SHARD + 1) * SHARD)


DAMAGES = [flip_a_page, flip_the_footer, cut_short, take_away]


def read(path, **options):
    """Every batch of an epoch as plain lists, the messages of warnings, and the loader."""
    options = {"batch_size": 7, "lanes": 4, "drop_last": False, "rank": 0, "world_size": 1, **options}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loader = ShardLoader(path, **options)
        batches = [[one.tolist() for one in (b.window_ids, b.input_ids, b.target_ids)] for b in loader]
    return batches, [str(warning.message) for warning in caught], loader


def filled(batches, bad):
    """What an intact epoch is when some windows come as rows that only fill: the twin."""
    width = len(batches[0][1][0])
    return [
        [
            [-1 if window in bad else window for window in windows],
            [[0] * width if window in bad else row for window, row in zip(windows, inputs, strict=True)],
            [[-100] * width if window in bad else row for window, row in zip(windows, targets, strict=True)],
        ]
        for windows, inputs, targets in batches
    ]


@pytest.mark.parametrize("shuffle", ORDERS)
@pytest.mark.parametrize("harm", DAMAGES)
def test_windows_of_damaged_row_groups_come_as_rows_that_only_fill(shards, copy, harm, shuffle):
    bad = set(harm(copy))
    intact, _, _ = read(shards, shuffle=shuffle)
    found, said, loader = read(copy, shuffle=shuffle, on_bad="fill")
    assert found == filled(intact, bad)
    assert loader.bad_windows == len(bad)
    named = [text for text in said if shard_of(copy).name in text]
    opening = harm in (cut_short, take_away)
    assert len(named) == len(said) == len(bad) // GROUP + opening, "one for each row group, and one at the opening"
    if harm is flip_a_page:
        assert f"{shard_of(copy)}: row group 2 cannot be read" in said[0]


@pytest.mark.parametrize("shuffle", ORDERS)
@pytest.mark.parametrize("harm", [flip_a_page, flip_the_footer])
def test_without_fill_the_error_comes_with_the_first_batch_that_needs_the_damage(shards, copy, harm, shuffle):
    bad = set(harm(copy))
    batches = [batch.window_ids.tolist() for batch in ShardLoader(shards, shuffle=shuffle, lanes=4, batch_size=3)]
    before = list(itertools.takewhile(lambda windows: not bad & set(windows), batches))
    loader, first = ShardLoader(copy, shuffle=shuffle, lanes=4, batch_size=3), len(before)
    for _ in range(2):
        seen = []
        with pytest.raises(OSError, match=r"write the data set again.* loader\.on_bad=fill"):
            for batch in loader:
                seen.append(batch.window_ids.tolist())  # noqa: PERF401 - what came before the error counts
        assert seen == before
        assert loader.consumed == 3 * first
        before = []  # asked again, the loader stands where it stood


@pytest.mark.parametrize("shuffle", ORDERS)
def test_what_one_rank_cannot_read_changes_nothing_for_the_others(shards, copy, shuffle):
    bad = set(flip_a_page(copy))
    for rank in range(2):
        place = {"rank": rank, "world_size": 2, "shuffle": shuffle, "batch_size": 5, "on_bad": "fill"}
        intact, _, one = read(shards, **place)
        found, _, other = read(copy, **place)
        assert found == filled(intact, bad)
        assert one.state_dict()["consumed"] == other.state_dict()["consumed"]
        assert other.bad_windows == sum(windows.count(-1) for windows, _, _ in found)


def test_worker_processes_fill_and_raise_as_threads_do(shards, copy):
    bad = set(flip_a_page(copy))
    intact, _, _ = read(shards, shuffle="full")
    found, said, loader = read(copy, shuffle="full", workers=2, on_bad="fill")
    assert found == filled(intact, bad)
    named = [text for text in said if shard_of(copy).name in text]  # newer Pythons also warn of forks beside threads
    assert (loader.bad_windows, len(named)) == (len(bad), 1)
    broken, count = ShardLoader(copy, shuffle="full", workers=2, batch_size=7), 0
    with pytest.raises(OSError, match="row group 2 cannot be read"):
        for _ in broken:
            count += 1
    assert count == next(at for at, (windows, _, _) in enumerate(intact) if bad & set(windows))


@pytest.mark.parametrize("budget", [1 << 29, None])
def test_a_second_epoch_fills_as_the_first_and_warns_no_more(shards, copy, budget, monkeypatch):
    monkeypatch.setattr("pipeline.loader.order.BLOCK_TOKENS", 1)
    bad = set(flip_a_page(copy))
    options = {"shuffle": "lanes", "lanes": 4, "batch_size": 7}
    if budget is None:  # too little to keep all row groups
        options["memory_budget"] = 1 << 16
    expected, loader = ShardLoader(shards, **options), ShardLoader(copy, on_bad="fill", **options)
    with pytest.warns(UserWarning, match="row group 2") as caught:
        found = [[batch.window_ids.tolist() for batch in loader] for _ in range(3)]
    for epoch in found:
        right = [batch.window_ids.tolist() for batch in expected]
        assert epoch == [[-1 if window in bad else window for window in windows] for windows in right]
    assert len(caught) == 1
    assert loader.bad_windows in range(3 * len(bad) - 3 * 7, 3 * len(bad) + 1)


@pytest.mark.parametrize("shuffle", ORDERS)
def test_a_mixture_keeps_its_draws_where_a_source_is_damaged(shards, copy, shuffle):
    bad = set(flip_a_page(copy))
    options = {"weights": [1, 2], "shuffle": shuffle, "lanes": 4, "batch_size": 6}

    def draw(second, **more):
        loader, drawn = ShardLoader([shards, second], **options, **more), []
        for batch in itertools.islice(loader, 100):
            drawn += zip(batch.source_ids.tolist(), batch.window_ids.tolist(), batch.input_ids.tolist(), strict=True)
        return drawn, loader

    intact, _ = draw(shards)
    with pytest.warns(UserWarning, match="row group 2 cannot be read"):
        found, loader = draw(copy, on_bad="fill")
    expected = [(s, -1, [0] * 16) if s == 1 and window in bad else (s, window, ids) for s, window, ids in intact]
    assert found == expected
    assert loader.bad_windows == sum(window < 0 for _, window, _ in found) > 0
    with pytest.raises(OSError, match="row group 2 cannot be read"):
        draw(copy)


def test_window_datasets_raise_for_damage_and_read_the_rest(copy):
    bad = flip_a_page(copy)
    dataset = WindowDataset(copy)
    for window in (bad[0], bad[-1]):
        with pytest.raises(OSError, match="row group 2 cannot be read"):
            dataset[window]
    assert len(dataset[bad[0] - 1]["input_ids"]) == 16


def test_damage_to_a_token_store_fills_the_windows_cut_from_it(shards, tmp_path):
    shutil.copytree(shards.parent / "cache", tmp_path / "cache")
    (array,) = (tmp_path / "cache").glob("chunks/*/train.npy")
    (store,) = (tmp_path / "cache").glob("stores/*.json")
    windows = store_windows(store, max_length=16, windows_per_group=GROUP)
    flip(array, -3)
    with pytest.raises(OSError, match=r"row group 0 cannot be read: .* it was changed"):
        next(iter(ShardLoader(windows, shuffle="none")))
    batches, _, loader = read(windows, shuffle="none", on_bad="fill")
    assert loader.bad_windows == 400
    assert all(target == -100 for _, _, targets in batches for row in targets for target in row)


def test_each_target_counts_once_where_the_row_group_before_is_damaged(tmp_path):
    lines = "".join(json.dumps({"text": f"{number:03} " * 20}) + "\n" for number in range(12))
    (tmp_path / "in.jsonl").write_text(lines)
    layout = {"max_length": 16, "stride": 4, "windows_per_group": 6, "windows_per_shard": 12, "documents": "separate"}
    corpus = {"corpus": "jsonl", "corpus_path": str(tmp_path / "in.jsonl"), "cache_path": tmp_path / "cache"}
    path = write_shards(tmp_path / "ds", **sections(**corpus, tokenizer="bytes", **layout)).path
    intact, _, _ = read(path, shuffle="none", score="new")
    file = sorted((path / "data").iterdir())[1]
    file.unlink()
    found, _, _ = read(path, shuffle="none", score="new", on_bad="fill")
    for (windows, _, targets), (got, _, scored) in zip(intact, found, strict=True):
        for window, right, number, row in zip(windows, targets, got, scored, strict=True):
            if number >= 0 and number != 24:  # the one after the damage may score what nobody else has
                assert (window, right) == (number, row)
    with pytest.raises(OSError, match="is missing"):
        read(path, shuffle="none", score="new")


def test_a_replaced_data_set_is_an_error_also_with_fill(tmp_path):
    def write(first):
        (tmp_path / "text.txt").write_text("".join(f"{first + number:04} " for number in range(400)))
        layout = {"windows_per_group": 60, "windows_per_shard": 60, "compression": "none", "overwrite": True}
        corpus = {"corpus": "text", "corpus_path": str(tmp_path / "text.txt"), "cache_path": tmp_path / "cache"}
        return write_shards(tmp_path / "ds", **sections(**corpus, tokenizer="bytes", max_length=16, **layout)).path

    loader = ShardLoader(write(0), on_bad="fill")
    write(5000)
    with pytest.raises(OSError, match="was replaced by another data set while it was read"):
        list(loader)
    assert loader.bad_windows == 0


def test_a_shard_damaged_under_a_reader_is_filled_by_row_group(copy):
    loader = ShardLoader(copy, shuffle="none", batch_size=GROUP, on_bad="fill", memory_budget=1 << 12)
    batches = iter(loader)
    next(batches)
    bad = flip_a_page(copy)
    os.utime(shard_of(copy))
    with pytest.warns(UserWarning, match="row group 2"):
        windows = [batch.window_ids.tolist() for batch in batches]
    assert [numbers for numbers in windows if -1 in numbers] == [[-1] * GROUP]
    assert loader.bad_windows == len(bad)


# Opening.


@pytest.mark.parametrize("opens", [ShardLoader, WindowDataset, lambda path: ShardLoader([path, path])])
def test_opening_names_every_shard_that_is_missing_or_has_another_size(copy, opens, monkeypatch):
    first, second, third = sorted((copy / "data").iterdir())[:3]
    first.unlink()
    second.write_bytes(second.read_bytes() + b"\0")
    os.truncate(third, 0)
    monkeypatch.setattr(shard_files, "read_footer", lambda *_: pytest.fail("a shard was opened"))
    with pytest.raises(OSError, match="is missing") as caught:
        opens(copy)
    said = str(caught.value)
    assert f"data/{first.name} is missing" in said
    assert all(f"data/{file.name} has {file.stat().st_size:,} byte" in said for file in (second, third))
    assert "loader.on_bad=fill" in said
    assert "\n" not in said
    with pytest.warns(UserWarning, match=f"data/{first.name} is missing.*{second.name}.*{third.name}"):
        ShardLoader(copy, on_bad="fill")


def test_a_split_opens_where_only_another_split_lacks_a_shard(write_text):
    path = write_text("some text " * 500, tokenizer="bytes", max_length=16, validation=0.3)
    next((path / "data").glob("validation-*")).unlink()
    assert len(ShardLoader(path)) > 0
    with pytest.raises(OSError, match=r"validation-00000-of-00001\.parquet is missing"):
        ShardLoader(path, split="validation")


def test_data_sets_of_very_many_shards_are_not_looked_through(copy, monkeypatch):
    take_away(copy)
    monkeypatch.setattr(damage, "MANY_SHARDS", 9)
    loader = ShardLoader(copy, shuffle="none")
    with pytest.raises(OSError, match=shard_of(copy).name):
        list(loader)


def test_a_data_set_of_links_opens(copy, tmp_path):
    linked = tmp_path / "linked"
    for file in copy.rglob("*"):
        if file.is_file():
            target = linked / file.relative_to(copy)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(file)
    assert len(list(ShardLoader(linked))) == 50


# Reading again.


class Failing:
    """Calls `real` after as many failures as are left."""

    def __init__(self, real, failures, number):
        self.real, self.left, self.number, self.calls = real, failures, number, 0

    def __call__(self, *arguments, **options):
        self.calls += 1
        if self.left > 0:
            self.left -= 1
            raise OSError(self.number, os.strerror(self.number), "somewhere")
        return self.real(*arguments, **options)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
@pytest.mark.parametrize(
    "place",
    [
        "pipeline.loader.shard_files.open_shard",
        "pipeline.shards.id_pages.read_columns",
        "pipeline.shards.format.open_regular",
        "pipeline.base.reading.open_regular",
    ],
)
def test_a_read_that_fails_once_costs_a_pause_and_nothing_else(shards, monkeypatch, place, number, pauses, caplog):
    expected, _, _ = read(shards, shuffle="none")
    module, name = place.rsplit(".", 1)
    real = getattr(__import__(module, fromlist=[name]), name)
    failing = Failing(real, 2, number)
    monkeypatch.setattr(place, failing)
    with caplog.at_level(logging.WARNING):
        found, _, _ = read(shards, shuffle="none", threads=1)
    assert found == expected
    assert pauses == list(PAUSES[:2])
    (said,) = [one.getMessage() for one in caplog.records if one.name == "pipeline.base.retry"]
    assert os.strerror(number) in said
    assert "trying again" in said


def test_a_token_store_is_read_again_too(shards, monkeypatch, pauses):
    (store,) = (shards.parent / "cache" / "stores").glob("*.json")
    windows = store_windows(store, max_length=16, windows_per_group=GROUP)
    expected, _, _ = read(windows, shuffle="none")
    for place in ("pipeline.base.reading.open_regular", "pipeline.tokens.chunk.open_regular"):
        module, name = place.rsplit(".", 1)
        pauses.clear()
        with monkeypatch.context() as patch:
            patch.setattr(place, Failing(getattr(__import__(module, fromlist=[name]), name), 1, errno.EIO))
            assert read(windows, shuffle="none")[0] == expected
        assert pauses == [PAUSES[0]]


def test_an_error_that_stays_is_raised_after_all_pauses_and_then_without_any(shards, monkeypatch, pauses):
    real = shard_files.open_regular

    def fails(path, **options):
        if "00004" in path.name:
            raise OSError(errno.EIO, "Input/output error", str(path))
        return real(path, **options)

    monkeypatch.setattr(shard_files, "open_regular", fails)
    loader = ShardLoader(shards, shuffle="none", threads=1)
    with pytest.raises(OSError, match=r"train-00004-of-00010\.parquet: row group 0 cannot be read: .*Input/output"):
        list(loader)
    assert pauses == list(PAUSES), "the other row groups of that shard wait no more"
    pauses.clear()
    found, _, filling = read(shards, shuffle="none", on_bad="fill")
    assert filling.bad_windows == SHARD
    assert len(found) == 58


@pytest.mark.parametrize("number", [errno.EACCES, errno.EMFILE])
def test_what_this_process_may_not_read_is_neither_read_again_nor_filled(shards, monkeypatch, pauses, number):
    monkeypatch.setattr(shard_files, "open_shard", Failing(shard_files.open_shard, 99, number))
    loader = ShardLoader(shards, shuffle="none", on_bad="fill")
    with pytest.raises(OSError, match=os.strerror(number)):
        list(loader)
    assert (pauses, loader.bad_windows) == ([], 0)


def test_a_missing_file_is_not_waited_for(copy, pauses):
    loader = ShardLoader(copy, shuffle="none")
    take_away(copy)
    with pytest.raises(OSError, match=shard_of(copy).name):
        list(loader)
    assert pauses == []


def test_a_checksum_that_does_not_match_is_read_once_more(shards, copy, monkeypatch, pauses):
    expected, _, _ = read(shards, shuffle="none")
    real, calls = id_pages.IdPages.read_known, []

    def once_wrong(self, footer, group, *arguments, **options):
        calls.append(group)
        if len(calls) == 1:
            raise OSError("could not verify page integrity, CRC checksum verification failed")
        return real(self, footer, group, *arguments, **options)

    monkeypatch.setattr(id_pages.IdPages, "read_known", once_wrong)
    assert read(shards, shuffle="none", threads=1)[0] == expected
    assert len(calls) == 41, "40 row groups, and one of them again"
    flip_a_page(copy)
    read(copy, shuffle="none", threads=1, on_bad="fill")
    assert len(calls) == 41 + 41
    assert pauses == []


def test_a_small_file_that_is_not_as_written_is_read_once_more(shards, monkeypatch, pauses):
    (store,) = (shards.parent / "cache" / "stores").glob("*.json")
    parse = json.loads
    for source in (shards, store_windows(store, max_length=16, windows_per_group=GROUP)):
        expected, _, _ = read(source, shuffle="none")
        contents = []

        def garble(content, contents=contents):
            contents.append(content)
            return parse(content if len(contents) > 1 else content.replace(b"0", b"1"))

        with monkeypatch.context() as patch:
            patch.setattr("pipeline.base.reading.json.loads", garble)
            assert read(source, shuffle="none")[0] == expected
        assert contents[0] == contents[1]
    assert pauses == []


def test_reading_again_stops_at_the_first_success_and_leaves_other_errors_alone(pauses):
    failing = Failing(lambda: "read", 3, errno.ETIMEDOUT)
    assert retry.retry(failing, Path("x")) == "read"
    assert (failing.calls, pauses) == (4, list(PAUSES[:3]))
    assert list(PAUSES) == sorted(PAUSES)
    assert not PASSING & {errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR}
    for number in (errno.ENOENT, errno.EACCES):
        failing = Failing(lambda: "read", 1, number)
        with pytest.raises(OSError, match="somewhere"):
            retry.retry(failing, Path("x"))
        assert failing.calls == 1
    wrong = Failing(lambda: "read", 0, 0)
    wrong.real = dict(zip("a", "b", strict=True)).popitem().index
    with pytest.raises(TypeError):
        retry.retry(wrong, Path("x"))
    assert wrong.calls == 1


def test_rows_that_only_fill_add_nothing_to_a_loss(copy):
    flip_a_page(copy)
    with pytest.warns(UserWarning, match="row group 2"):
        batches = list(ShardLoader(copy, shuffle="full", on_bad="fill", document_ids=True))
    for batch in batches:
        bad = batch.window_ids < 0
        assert (batch.target_ids[bad] == -100).all()
        assert torch.equal(bad, (batch.target_ids == -100).all(dim=1))
