"""The index of shards says what the files are, is read by need, and nothing in it is believed unchecked."""

import contextlib
import hashlib
import json
import pickle
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import sections

from pipeline import ShardLoader, read_manifest, verify_shards, write_shards
from pipeline.base.reading import sign
from pipeline.shards import index as index_module
from pipeline.shards.entries import INDEX_NAME, ShardEntry, shard_path
from pipeline.shards.index import GROUP_ROWS, GROUPS_KEPT, SCHEMA, SplitShape, index_shards, write_index

OPTIONS = {"corpus": "jsonl", "tokenizer": "bytes", "max_length": 8, "windows_per_group": 3, "windows_per_shard": 6}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A data set of two splits with several shards each."""
    folder = tmp_path_factory.mktemp("index")
    lines = [json.dumps({"text": f"document {number} " + "of some words" * (number % 4)}) for number in range(60)]
    (folder / "docs.jsonl").write_text("\n".join(lines))
    given = sections(**OPTIONS, corpus_path=str(folder / "docs.jsonl"), validation=0.3, cache_path=folder / "cache")
    return write_shards(folder / "shards", **given)


@pytest.fixture
def copy(made, tmp_path):
    return shutil.copytree(made.path, tmp_path / "copy")


def sign_anew(folder, change):
    """Change the manifest, which then carries the right hash: as a hostile writer would."""
    path = folder / "manifest.json"
    fields = json.loads(path.read_text())
    change(fields)
    path.write_text(json.dumps(sign(fields)))


def replace_index(folder, table, *, row_group_size=GROUP_ROWS, **options):
    """Put another index in place, with its right hashes in the manifest."""
    pq.write_table(table, folder / INDEX_NAME, row_group_size=row_group_size, use_dictionary=False, **options)
    content = (folder / INDEX_NAME).read_bytes()
    start = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    hashes = {"sha256": content, "footer_sha256": content[start:]}
    entry = {name: hashlib.sha256(part).hexdigest() for name, part in hashes.items()}
    entry |= {"path": INDEX_NAME, "num_rows": len(table), "bytes": len(content), "footer_start": start}
    sign_anew(folder, lambda fields: fields.update(index=entry))


# --- What it says ---------------------------------------------------------------------------------------------------


def test_the_index_says_of_each_shard_what_its_file_is(made):
    table = pq.read_table(made.path / INDEX_NAME)
    assert table.schema.equals(SCHEMA)
    assert sorted(table["path"].to_pylist()) == sorted(f"data/{one.name}" for one in (made.path / "data").iterdir())
    for row in table.to_pylist():
        content = (made.path / row["path"]).read_bytes()
        assert (row["bytes"], row["sha256"]) == (len(content), hashlib.sha256(content).digest())
        assert row["footer_sha256"] == hashlib.sha256(content[row["footer_start"] :]).digest()
        assert row["num_windows"] == pq.read_metadata(made.path / row["path"]).num_rows


def test_a_read_manifest_has_the_shards_as_they_were_written(made):
    read = read_manifest(made.path)
    assert read == made.manifest
    for name, split in read.splits.items():
        written = list(made.manifest.splits[name].shards)
        assert list(split.shards) == written == split.shards[:]
        assert [split.shards[-1], split.shards[1:3]] == [written[-1], written[1:3]]
        assert split.num_bytes == sum(shard.bytes for shard in written)
        assert list(split.row_groups) == [count for shard in written for count in shard.row_groups]
        assert [split.shard_path(number) for number in range(len(written))] == [shard.path for shard in written]
        with pytest.raises(IndexError):
            split.shards[len(written)]


def test_the_manifest_has_one_size_for_any_number_of_shards(made):
    fields = json.loads((made.path / "manifest.json").read_text())
    assert fields["format_version"] == 2
    train = fields["splits"]["train"]
    assert train["num_shards"] == len(made.manifest.splits["train"].shards) > 3
    assert (train["windows_per_group"], train["windows_per_shard"]) == (3, 6)
    assert "shards" not in train


@given(
    st.lists(st.tuples(st.integers(0, 3 * GROUP_ROWS), st.integers(1, 4), st.integers(1, 3)), min_size=1, max_size=3),
    st.data(),
)
@settings(max_examples=15, deadline=None)
def test_an_index_of_any_length_says_what_was_put_into_it(tmp_path_factory, shapes, data):
    folder = tmp_path_factory.mktemp("index")
    splits = {}
    for at, (num_shards, per_group, groups) in enumerate(shapes):
        last = data.draw(st.integers(1, per_group * groups)) if num_shards else 0
        windows = max(0, num_shards - 1) * per_group * groups + last
        splits[f"split{at}"] = SplitShape(f"split{at}", windows, 8, per_group, per_group * groups)
    entries = {name: make_entries(shape) for name, shape in splits.items()}
    entry = write_index(folder, list(entries.values()))
    found = index_shards(folder, entry, list(splits.values()), dict.fromkeys(splits, 0))
    for name, expected in entries.items():
        assert len(found[name]) == len(expected)
        asked = data.draw(st.lists(st.integers(0, len(expected) - 1), max_size=5)) if expected else []
        assert [found[name][number] for number in asked] == [expected[number] for number in asked]
        assert list(found[name]) == expected


def make_entries(shape):
    """The entries of shards that do not exist."""
    digests = [hashlib.sha256(f"{shape.name}{number}".encode()).hexdigest() for number in range(shape.num_shards)]
    return [
        ShardEntry(
            path=shard_path(shape.name, number, shape.num_shards),
            num_windows=sum(shape.row_groups(number)),
            bytes=10_000 + number,
            sha256=digest,
            row_groups=shape.row_groups(number),
            footer_start=9_000 + number,
            footer_sha256=digest[::-1],
        )
        for number, digest in enumerate(digests)
    ]


# --- Read by need ----------------------------------------------------------------------------------------------------


@pytest.fixture
def reads(monkeypatch):
    """The ranges of the index that are read."""
    found, read = [], index_module.read_range
    monkeypatch.setattr(index_module, "read_range", lambda folder, *span: found.append(span) or read(folder, *span))
    return found


def test_a_shard_costs_one_read_of_the_footer_and_one_of_its_row_group(tmp_path, reads):
    shape = SplitShape("train", 5 * 40_000, 8, 5, 5)
    entries = make_entries(shape)
    entry = write_index(tmp_path, [entries])
    shards = index_shards(tmp_path, entry, [shape], {"train": 0})["train"]
    assert (len(shards), reads) == (40_000, []), "opening reads nothing"
    for number in (39_999, 39_998, 0, 1, 39_999, 1023):
        assert shards[number] == entries[number]
    footer, *groups = reads
    assert footer == (entry.footer_start, entry.bytes)
    assert len(groups) == 2
    assert all(stop - start < 128 * GROUP_ROWS for start, stop in groups)
    size = len(pickle.dumps(shards))
    assert size < 1000, "what was read does not travel"
    assert pickle.loads(pickle.dumps(shards))[7] == entries[7]


def test_only_so_many_row_groups_stay_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(index_module, "GROUPS_KEPT", 2)
    shape = SplitShape("train", 5 * GROUP_ROWS, 8, 1, 1)
    shards = index_shards(tmp_path, write_index(tmp_path, [make_entries(shape)]), [shape], {"train": 0})["train"]
    assert len(list(shards)) == 5 * GROUP_ROWS
    assert len(shards.source.groups) == 2 < GROUPS_KEPT
    assert max(table.nbytes for table in shards.source.groups.values()) < 100_000


def test_a_loader_starts_without_reading_the_index_of_many_shards(made, reads, monkeypatch):
    monkeypatch.setattr("pipeline.loader.damage.MANY_SHARDS", 0)
    loader = ShardLoader(made.path, batch_size=2, shuffle="lanes", lanes=2)
    assert len(reads) == 1, "a small index is read as a whole, for the first and the last shard"
    assert next(iter(loader)).input_ids.shape == (2, 8)


@pytest.mark.parametrize(("number", "is_missed"), [(0, True), (1, False), (-1, True)])
def test_of_many_shards_the_first_and_the_last_are_looked_at_when_a_loader_starts(copy, number, is_missed, monkeypatch):
    (copy / read_manifest(copy).splits["train"].shards[number].path).unlink()
    with pytest.raises(OSError, match="is missing"):
        ShardLoader(copy, batch_size=2)
    monkeypatch.setattr("pipeline.loader.damage.MANY_SHARDS", 2)
    if is_missed:
        with pytest.raises(OSError, match="is missing"):
            ShardLoader(copy, batch_size=2)
    else:
        loader = ShardLoader(copy, batch_size=2, shuffle="none")
        with pytest.raises(OSError, match="No such file"):
            list(loader)


# --- Damage, and hostile content ------------------------------------------------------------------------------------


def test_every_flipped_byte_of_an_index_is_found(copy, made):
    """By whoever reads that part, and by verify in any case; nothing else is harmed."""
    path = copy / INDEX_NAME
    content = path.read_bytes()
    expected = [list(split.shards) for split in made.manifest.splits.values()]
    rng = np.random.default_rng(0)
    for at in sorted({0, len(content) - 1, *rng.integers(0, len(content), 60).tolist()}):
        damaged = bytearray(content)
        damaged[at] ^= 1 << int(rng.integers(0, 8))
        path.write_bytes(damaged)
        with contextlib.suppress(ValueError):
            found = [list(split.shards) for split in read_manifest(copy).splits.values()]
            assert found == expected, f"byte {at}"
        faults = verify_shards(copy).faults
        assert INDEX_NAME in {fault.file for fault in faults}, f"byte {at}"


def test_a_footer_is_compared_with_the_manifest_before_anything_parses_it(copy):
    path = copy / INDEX_NAME
    content = path.read_bytes()
    assert b"parquet-cpp-arrow" in content, "who made it: a part that no reader needs"
    path.write_bytes(content.replace(b"parquet-cpp-arrow", b"parquet-cpp-array"))
    with pytest.raises(ValueError, match="its footer does not have the sha256 of the manifest"):
        read_manifest(copy).splits["train"].shards[0]


@pytest.mark.parametrize("size", [0, 3, 100, -1])
def test_a_truncated_or_missing_index_is_a_problem_in_one_line(copy, size):
    path = copy / INDEX_NAME
    path.write_bytes(path.read_bytes()[:size])
    for harm in (lambda: None, path.unlink):
        harm()
        with pytest.raises(ValueError, match=rf"{INDEX_NAME}: .*write the data set again"):
            read_manifest(copy).splits["train"].shards[0]
        with pytest.raises(OSError, match=INDEX_NAME):
            ShardLoader(copy, batch_size=2)
        assert {fault.file for fault in verify_shards(copy).faults} == {INDEX_NAME}


def test_with_fill_the_windows_of_a_damaged_index_come_as_rows_that_only_fill(copy):
    (copy / INDEX_NAME).unlink()
    with pytest.warns(UserWarning, match="only fill"):
        loader = ShardLoader(copy, batch_size=2, on_bad="fill")
    with pytest.warns(UserWarning, match=INDEX_NAME):
        batches = list(loader)
    assert all((batch.window_ids == -1).all() for batch in batches)
    assert loader.bad_windows == 2 * len(batches) > 0


def test_the_write_stage_mends_an_index(copy, made):
    given = sections(
        **OPTIONS,
        corpus_path=str(made.path.parent / "docs.jsonl"),
        validation=0.3,
        cache_path=made.path.parent / "cache",
    )
    whole = (copy / INDEX_NAME).read_bytes()
    for harm in (lambda path: path.unlink(), lambda path: path.write_bytes(b"PAR1 no index PAR1")):
        harm(copy / INDEX_NAME)
        report = write_shards(copy, **given)
        assert not report.finished_before
        assert (copy / INDEX_NAME).read_bytes() == whole
        assert write_shards(copy, **given).finished_before
        assert verify_shards(copy).faults == []
        assert not list(copy.glob(".*"))


def set_column(name, change):
    def replace(table):
        values = table[name].to_pylist()
        change(values)
        return table.set_column(
            table.schema.get_field_index(name),
            table.schema.field(name),
            pa.array(values, table.schema.field(name).type),
        )

    return replace


def put(at, value):
    return lambda values: values.__setitem__(at, value)


HOSTILE = {
    "a path outside the folder": (
        set_column("path", put(1, "../../../etc/passwd")),
        "row 1 of its row group 0 has path",
    ),
    "an absolute path": (set_column("path", put(0, "/etc/passwd")), "row 0 of its row group 0 has path '/etc/passwd'"),
    "a shard twice": (
        set_column("path", lambda values: put(1, values[0])(values)),
        "row 1 of its row group 0 has path",
    ),
    "shards in another order": (lambda table: table.take([1, 0, *range(2, len(table))]), "row 0 of its row group 0"),
    "other counts": (set_column("num_windows", put(0, 5)), "num_windows '5'; by the manifest it is 6"),
    "a huge count": (set_column("num_windows", put(2, 2**62)), "num_windows '4611686018427387904'"),
    "a negative size": (set_column("bytes", put(0, -1)), "bytes: must be at least 0"),
    "a size too small for its windows": (set_column("bytes", put(0, 0)), "0 bytes are too few|footer_start"),
    "a footer beyond the end": (set_column("footer_start", put(0, 2**40)), "footer_start"),
    "other columns": (lambda table: table.append_column("more", table["bytes"]), "other columns"),
    "other types": (lambda table: table.set_column(2, "bytes", table["bytes"].cast(pa.int32())), "other columns"),
    "nulls allowed": (
        lambda table: table.cast(pa.schema([field.with_nullable(True) for field in SCHEMA])),
        "other columns",
    ),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_an_index_that_says_something_else_than_the_manifest_is_refused(copy, what):
    change, text = HOSTILE[what]
    table = pq.read_table(copy / INDEX_NAME)
    count = len(read_manifest(copy).splits["train"].shards)
    parts = [change(table.slice(0, count)), table.slice(count)]
    if parts[0].schema != SCHEMA:
        parts = [change(table)]
    replace_index(copy, pa.concat_tables(parts), row_group_size=count)
    with pytest.raises(ValueError, match=text):
        list(read_manifest(copy).splits["train"].shards)
    faults = verify_shards(copy).faults
    assert INDEX_NAME in {fault.file for fault in faults}
    assert any(part in " ".join(fault.problem for fault in faults) for part in text.split("|"))


@pytest.mark.parametrize("missing", [1, -1])
def test_an_index_with_more_or_fewer_rows_is_refused_by_the_manifest(copy, missing):
    table = pq.read_table(copy / INDEX_NAME)
    replace_index(copy, table.slice(1) if missing == 1 else pa.concat_tables([table, table.slice(0, 1)]))
    with pytest.raises(ValueError, match=r"malformed: index.num_rows: \d+, but the splits have \d+ shards"):
        read_manifest(copy)


def test_pages_that_unpack_to_more_than_an_index_needs_are_not_unpacked(copy):
    table = pq.read_table(copy / INDEX_NAME)
    count = len(read_manifest(copy).splits["train"].shards)
    long = set_column("path", put(0, "x" * 10_000_000))(table)
    replace_index(copy, long, row_group_size=count, compression="zstd")
    with pytest.raises(ValueError, match=r"other sizes than \d+ shards need"):
        read_manifest(copy).splits["train"].shards[0]


WRONG_SPLITS = {
    "num_shards": (lambda split: split["num_shards"] + 1, r"num_shards: \d+, but \d+ windows in shards of 6 are"),
    "windows_per_group": (lambda _: 4, "windows_per_shard: 6 is no multiple of windows_per_group 4"),
    "windows_per_shard": (lambda _: 0, "windows_per_shard: must be at least 1"),
    "bytes": (lambda _: 0, "0 bytes are too few"),
    "num_windows": (lambda _: 2**40, "num_shards|too few"),
}


@pytest.mark.parametrize("key", WRONG_SPLITS)
def test_a_manifest_whose_shards_do_not_fit_is_refused(copy, key):
    value, text = WRONG_SPLITS[key]
    sign_anew(copy, lambda fields: fields["splits"]["train"].update({key: value(fields["splits"]["train"])}))
    with pytest.raises(ValueError, match=rf"manifest.json: malformed: .*({text})"):
        read_manifest(copy)


@pytest.mark.parametrize(
    "change", [{"path": "../index.parquet"}, {"bytes": 2**50}, {"footer_start": -1}, {"sha256": 3}]
)
def test_an_entry_of_the_index_that_cannot_be_is_refused(copy, change):
    sign_anew(copy, lambda fields: fields["index"].update(change))
    with pytest.raises(ValueError, match=r"manifest.json: malformed"):
        read_manifest(copy)


def test_verify_names_a_split_whose_bytes_are_not_those_of_its_shards(copy):
    sign_anew(copy, lambda fields: fields["splits"]["train"].update(bytes=fields["splits"]["train"]["bytes"] + 1))
    (fault,) = verify_shards(copy).faults
    assert (fault.file, "splits.train.bytes is" in fault.problem) == ("manifest.json", True)


def test_a_link_in_place_of_an_index_is_refused_by_the_write_stage(copy, made, tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (copy / INDEX_NAME).unlink()
    (copy / INDEX_NAME).symlink_to(precious)
    given = sections(
        **OPTIONS,
        corpus_path=str(made.path.parent / "docs.jsonl"),
        validation=0.3,
        cache_path=made.path.parent / "cache",
    )
    with pytest.raises(ValueError, match="is a symbolic link"):
        write_shards(copy, **given)
    assert precious.read_text() == "mine"


def test_a_loader_goes_on_when_a_data_set_is_replaced_by_the_same(copy, made):
    loader = ShardLoader(copy, batch_size=2, shuffle="none", threads=1)
    expected = [batch.window_ids.tolist() for batch in ShardLoader(made.path, batch_size=2, shuffle="none")]
    batches = iter(loader)
    found = [next(batches).window_ids.tolist()]
    shutil.copy(copy / "manifest.json", copy / "again")
    (copy / "again").rename(copy / "manifest.json")
    assert found + [batch.window_ids.tolist() for batch in batches] == expected
