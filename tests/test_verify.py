"""Verify finds whatever is wrong, and the loader never gives wrong IDs in silence."""

import dataclasses
import hashlib
import random
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import ShardLoader, read_manifest, verify_shards
from pipeline.shards.format import shard_writer
from pipeline.shards.manifest import write_manifest


@pytest.fixture
def write(write_books):
    sizes = {"max_length": 16, "windows_per_group": 20, "windows_per_shard": 80}
    return lambda **options: write_books(**{**sizes, **options}).path


@pytest.fixture
def verify(tmp_path):
    return lambda workers=1: verify_shards(tmp_path / "shards", cache_path=tmp_path / "cache", workers=workers)


def problems(report):
    return [(fault.file, fault.problem) for fault in report.faults]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 1},
        {"stride": 5, "tail": "pad"},
        {"documents": "separate", "tail": "pad", "order": "shuffled", "order_seed": 3},
        {"documents": "separate", "validation": 0.4},
        {"compression": "none", "order": "shuffled"},
    ],
)
@pytest.mark.parametrize("has_store", [True, False])
def test_an_intact_data_set_has_no_fault(write, verify, tmp_path, options, has_store):
    folder = write(**options)
    if not has_store:
        shutil.rmtree(tmp_path / "cache")
    report = verify(workers=2)
    assert problems(report) == []
    assert report.compared_with_store == has_store
    manifest = read_manifest(folder)
    assert report.windows == sum(split.num_windows for split in manifest.splits.values())
    assert report.shards == len(list((folder / "data").iterdir()))


def test_no_fault_stops_the_list(write, verify):
    folder = write()
    first, second, third, *_ = sorted((folder / "data").iterdir())
    first.unlink()
    second.write_bytes(b"PAR1 no Parquet PAR1")
    third.write_bytes(third.read_bytes()[:-100])
    (folder / "data" / "notes.txt").write_text("mine")
    report = verify(workers=2)
    assert {fault.file for fault in report.faults} == {
        f"data/{name}" for name in (first.name, second.name, third.name, "notes.txt")
    }
    said = "\n".join(f"{file}: {problem}" for file, problem in problems(report))
    for words in ("No such file", "the manifest says", "cannot be read as Parquet", "is not in the manifest", "sha256"):
        assert words in said


def test_without_a_manifest_that_is_the_fault(write, verify):
    folder = write()
    (folder / "manifest.json").unlink()
    next((folder / "data").iterdir()).write_bytes(b"no Parquet")
    (first, what), (_, second) = problems(verify())
    assert (first, "holds no manifest.json" in what) == ("manifest.json", True)
    assert "cannot be read as Parquet" in second


def edit(folder, change, groups=(20, 20, 20, 20)):
    """Change the first shard's columns and sign it anew, as if a faulty writer had written it."""
    manifest = read_manifest(folder)
    split = manifest.splits["train"]
    path = folder / split.shards[0].path
    table = pq.read_table(path)
    columns = {}
    for name in table.column_names:
        column = table.column(name).combine_chunks()
        is_list = pa.types.is_fixed_size_list(column.type)
        columns[name] = (column.flatten() if is_list else column).to_numpy().copy().reshape(len(table), -1)
    change(columns)
    arrays = [
        pa.FixedSizeListArray.from_arrays(pa.array(columns[field.name].reshape(-1)), type=field.type)
        if pa.types.is_fixed_size_list(field.type)
        else pa.array(columns[field.name][:, 0], field.type)
        for field in table.schema
    ]
    with shard_writer(path, table.schema, compression="zstd") as writer:
        changed = pa.Table.from_arrays(arrays, schema=table.schema)
        for index, count in enumerate(groups):
            writer.write_table(changed.slice(index * 20, count))
    content = path.read_bytes()
    entry = dataclasses.replace(split.shards[0], bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    split = dataclasses.replace(split, shards=[entry, *split.shards[1:]])
    write_manifest(folder, dataclasses.replace(manifest, splits={**manifest.splits, "train": split}))
    return entry.path


def put(name, row, position, value):
    def change(columns):
        columns[name][row, position] = value

    return change


WRONG_ROWS = {
    "an input that is no other window's": (put("input_ids", 25, 3, 65), "row group 1: 1 windows with target_ids that"),
    "a target": (put("target_ids", 25, 3, 65), "row group 1: 1 windows with target_ids that are not the input_ids"),
    "an ID beyond the vocabulary": (put("input_ids", 0, 0, 300), "row group 0: 1 windows with input_ids outside"),
    "a negative ID": (put("input_ids", 3, 0, -5), "row group 0: 1 windows with input_ids outside"),
    "a start": (put("start", 79, 0, 7), "row group 3: row 19 has start 7, but 1264 by arithmetic"),
    "a next ID": (put("next_id", 2, 0, 66), "row group 0: 1 windows with a next_id that is not the last"),
}


@pytest.mark.parametrize("has_store", [True, False])
@pytest.mark.parametrize("case", WRONG_ROWS)
def test_wrong_rows_under_right_hashes_are_found(write, verify, tmp_path, case, has_store):
    change, expected = WRONG_ROWS[case]
    folder = write()
    name = edit(folder, change)
    if not has_store:
        shutil.rmtree(tmp_path / "cache")
    report = verify()
    assert {fault.file for fault in report.faults} == {name}
    assert any(expected in fault.problem for fault in report.faults), problems(report)


def test_consistent_rows_that_are_not_the_texts_are_found_by_the_token_store(write, verify):
    def change(columns):  # "T" of the first window: its only input that is no target
        columns["input_ids"][0, 0] = 65

    folder = write()
    name = edit(folder, change)
    assert problems(verify()) == [(name, "row group 0: 1 windows differ from the token store, the first in row 0")]


def flip_in_cache(tmp_path, name):
    """Flip a bit in the middle of a file of the only chunk; returns the chunk's folder."""
    (file,) = (tmp_path / "cache" / "chunks").glob(f"*/{name}")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    return file.parent


@pytest.mark.parametrize("name", ["train.npy", "documents.npy"])
def test_a_damaged_cache_is_blamed_itself_and_its_remedy_leads_to_right_ids(write, verify, tmp_path, name):
    folder = write(documents="separate")
    truth = {file.name: file.read_bytes() for file in (folder / "data").iterdir()}
    damaged = flip_in_cache(tmp_path, name)
    (fault,) = verify().faults
    assert fault.file == str(damaged)
    assert f"its {name} has the checksum" in fault.problem
    for file in (folder / "data").iterdir():  # the data set is written anew, from the cache as it is
        file.unlink()
    write(documents="separate")
    assert {file.name: file.read_bytes() for file in (folder / "data").iterdir()} == truth
    report = verify()
    assert (problems(report), report.compared_with_store) == ([], True)


def test_windows_of_another_length_come_right_from_a_damaged_cache(write, verify, tmp_path):
    write()
    flip_in_cache(tmp_path, "train.npy")
    shutil.rmtree(tmp_path / "shards")
    folder = write(max_length=24)
    found = batches(folder)
    shutil.rmtree(tmp_path / "shards")
    shutil.rmtree(tmp_path / "cache")
    assert same(found, batches(write(max_length=24)))


def test_a_cache_that_lacks_files_stops_no_list(write, verify, tmp_path):
    write()
    (store,) = (tmp_path / "cache" / "stores").iterdir()
    (chunk,) = (tmp_path / "cache" / "chunks").iterdir()
    (chunk / "documents.npy").unlink()
    assert [fault.file for fault in verify().faults] == [str(chunk)]
    shutil.rmtree(chunk)
    assert (verify().faults, verify().compared_with_store) == ([], False)
    store.write_text("[]")
    assert (verify().faults, verify().compared_with_store) == ([], False)


def test_a_padded_window_with_a_target_after_its_end_is_found(write, verify, tmp_path):
    folder = write(tail="pad", documents="separate", windows_per_group=200, windows_per_shard=200)
    lengths = pq.read_table(folder / read_manifest(folder).splits["train"].shards[0].path).column("length").to_pylist()
    row = next(index for index, length in enumerate(lengths) if length < 16)
    edit(folder, put("target_ids", row, 15, 65), groups=(len(lengths),))
    assert any("after the window's length that are not -100" in fault.problem for fault in verify().faults)


def test_row_groups_that_the_manifest_does_not_know_are_found(write, verify):
    folder = write()
    name = edit(folder, lambda _: None, groups=(20, 20, 20, 19))
    assert problems(verify()) == [
        (name, "has row groups of [20, 20, 20, 19] windows; the manifest says [20, 20, 20, 20]")
    ]


def batches(folder):
    loader = ShardLoader(folder, batch_size=64, shuffle="none", drop_last=False, rank=0, world_size=1)
    return [np.concatenate([batch.input_ids.numpy(), batch.target_ids.numpy()], axis=1) for batch in loader]


def same(found, expected):
    return len(found) == len(expected) and all(np.array_equal(*pair) for pair in zip(found, expected, strict=True))


@pytest.mark.slow
def test_of_1000_changed_bytes_none_goes_unseen_and_none_gives_wrong_ids(write, verify):
    folder = write(windows_per_group=40, windows_per_shard=120)
    files = [*sorted((folder / "data").iterdir()), folder / "manifest.json"]
    truth, manifest = batches(folder), read_manifest(folder)
    offsets = [(file, offset) for file in files for offset in range(file.stat().st_size)]
    picked = random.Random(11)
    counts = dict.fromkeys(("reported", "without meaning", "refused by the loader", "no harm to the loader"), 0)
    for file, offset in picked.sample(offsets, 1000):
        intact = file.read_bytes()
        value = picked.choice([other for other in range(256) if other != intact[offset]])
        file.write_bytes(intact[:offset] + bytes([value]) + intact[offset + 1 :])
        if verify().faults:
            counts["reported"] += 1
        else:
            assert file.name == "manifest.json", f"{file.name}, byte {offset}: {value} is not reported"
            assert read_manifest(folder) == manifest, f"{file.name}, byte {offset}: {value} is not reported"
            counts["without meaning"] += 1
        try:
            found = batches(folder)
        except Exception:  # noqa: BLE001 - any refusal will do: what counts is that it is not silent
            counts["refused by the loader"] += 1
        else:
            assert same(found, truth), f"{file.name}, byte {offset}: {value} gives wrong IDs in silence"
            counts["no harm to the loader"] += 1
        file.write_bytes(intact)
    print(", ".join(f"{count} {what}" for what, count in counts.items()))
    assert counts["reported"] > 900
    assert problems(verify()) == []


def test_a_report_is_one_line_of_counts_and_a_table_in_a_notebook(write, verify):
    folder = write(validation=0.3)
    manifest = read_manifest(folder)
    train = manifest.splits["train"]
    assert f"train: {train.num_windows:,} windows of {train.num_tokens:,} tokens" in repr(manifest)
    assert f"<td>{train.num_windows:,}</td>" in manifest._repr_html_()
    next((folder / "data").iterdir()).unlink()
    report = verify()
    assert "problems=1," in repr(report)
    assert "No such file" in report._repr_html_()
    for shown in (repr(manifest), repr(report)):
        assert len(shown) < 300
        assert "\n" not in shown


def test_verify_is_a_stage_with_an_exit_code_and_a_list(cli, tmp_path):
    assert cli("stages=[write,verify]", "tokenizer=bytes").returncode == 0
    shard = next(tmp_path.rglob("train-*.parquet"))
    content = bytearray(shard.read_bytes())
    content[1000] ^= 4
    shard.write_bytes(content)
    done = cli("stages=[verify,load]", "tokenizer=bytes")
    assert done.returncode == 1
    assert f"problem   data/{shard.name}: has sha256" in done.stdout
    assert "CRC checksum verification failed" in done.stdout
    assert "load" not in done.stdout.split("remedy")[1].split("in  ")[1]
    assert done.stderr.strip().endswith(": 2 problems found, listed above")


def test_the_remedy_for_a_damaged_manifest_leads_back_to_the_data_set(cli, tmp_path):
    def verify():
        return cli("stages=[verify]", "tokenizer=bytes")

    assert cli("stages=[write]", "tokenizer=bytes").returncode == 0
    manifest = next(tmp_path.rglob("manifest.json"))
    fingerprint = read_manifest(manifest.parent).fingerprint
    manifest.write_text(manifest.read_text().replace('"stride": 256', '"stride": 255'))
    assert "leave manifest.json where it is and run the write stage again with shards.overwrite=true" in verify().stdout
    assert cli("stages=[write]", "tokenizer=bytes", "shards.overwrite=true").returncode == 0
    assert verify().returncode == 0
    assert read_manifest(manifest.parent).fingerprint == fingerprint
    manifest.unlink()
    assert "restore manifest.json from a copy, or write the data set to another shards.path" in verify().stdout
