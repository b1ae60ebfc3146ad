"""Verify finds whatever is wrong, and the loader never gives wrong IDs in silence."""

import copy
import dataclasses
import hashlib
import itertools
import json
import os
import random
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import write_format_1

from pipeline import ShardLoader, read_manifest, verify_shards
from pipeline.base.reading import sign
from pipeline.shards.format import find_footer
from pipeline.shards.manifest import write_manifest
from pipeline.shards.shard_writer import ShardWriter
from pipeline.tokens.chunk import chunk_text, find_chunk
from pipeline.tokens.store import open_store


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
        {"documents": "pack", "validation": 0.4},
        {"documents": "pack", "order": "shuffled"},
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
    for words in ("No such file", "the manifest says", "is not in the manifest", "sha256"):
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
    with path.open("wb") as sink, ShardWriter(sink, table.schema, compression="zstd") as writer:
        changed = pa.Table.from_arrays(arrays, schema=table.schema)
        for index, count in enumerate(groups):
            writer.write_table(changed.slice(index * 20, count))
    content = path.read_bytes()
    start, footer = find_footer(path)
    hashes = {"sha256": content, "footer_sha256": footer}
    hashes = {name: hashlib.sha256(part).hexdigest() for name, part in hashes.items()}
    entry = dataclasses.replace(split.shards[0], bytes=len(content), footer_start=start, **hashes)
    split = dataclasses.replace(split, shards=[entry, *split.shards[1:]])
    write_manifest(folder, dataclasses.replace(manifest, splits={**manifest.splits, "train": split}))
    return entry.path


def put(name, row, position, value):
    def change(columns):
        columns[name][row, position] = value

    return change


WRONG_ROWS = {
    "an input that is no other window's": (put("input_ids", 25, 3, 65), "row group 1: 1 window with target_ids that"),
    "a target": (put("target_ids", 25, 3, 65), "row group 1: 1 window with target_ids that are not the input_ids"),
    "an ID beyond the vocabulary": (put("input_ids", 0, 0, 300), "row group 0: 1 window with input_ids outside"),
    "a negative ID": (put("input_ids", 3, 0, -5), "row group 0: 1 window with input_ids outside"),
    "a start": (put("start", 79, 0, 7), "row group 3: row 19 has start 7, but 1264 by arithmetic"),
    "a next ID": (put("next_id", 2, 0, 66), "row group 0: 1 window with a next_id that is not the last"),
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
    assert problems(verify()) == [(name, "row group 0: 1 window unlike the token store, the first in row 0")]


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
    assert [fault.file for fault in verify().faults] == [str(store)]
    store.unlink()
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
        (name, "cannot be read as Parquet: its row group 3 has 19 windows, but 20 by the manifest")
    ]


def batches(folder):
    loader = ShardLoader(folder, batch_size=64, shuffle="none", drop_last=False, rank=0, world_size=1)
    return [np.concatenate([batch.input_ids.numpy(), batch.target_ids.numpy()], axis=1) for batch in loader]


def same(found, expected):
    return len(found) == len(expected) and all(np.array_equal(*pair) for pair in zip(found, expected, strict=True))


@pytest.mark.slow
def test_of_400_changed_bytes_none_goes_unseen_and_none_gives_wrong_ids(write, verify):
    folder = write(windows_per_group=40, windows_per_shard=120)
    files = [*sorted((folder / "data").iterdir()), folder / "manifest.json"]
    truth, manifest = batches(folder), read_manifest(folder)
    offsets = [(file, offset) for file in files for offset in range(file.stat().st_size)]
    picked = random.Random(11)
    counts = dict.fromkeys(("reported", "without meaning", "refused by the loader", "no harm to the loader"), 0)
    for file, offset in picked.sample(offsets, 400):
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
    assert counts["reported"] > 360
    assert problems(verify()) == []


def sign_anew(folder, **fields):
    """Replace fields of the manifest, which then carries the right hash, as a faulty writer's would."""
    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    for name, value in fields.items():
        *parents, last = name.split("__")
        inner = content
        for parent in parents:
            inner = inner[parent]
        inner[last] = value
    path.write_text(json.dumps(sign(content)))


def cut(file, size):
    file.write_bytes(file.read_bytes()[:size])


def test_whatever_the_write_stage_would_write_again_is_a_problem(write, verify, tmp_path, books):
    (books / "bad.txt").write_bytes(b"\xff\xfe\xfd")
    folder = write(max_bad_fraction=1.0)
    truth = {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    card, quarantine = folder / "README.md", folder / "quarantine.jsonl"
    harm = {
        "README.md": [card.unlink, *(partial(cut, card, size) for size in (0, 10, 900))],
        "quarantine.jsonl": [quarantine.unlink, *(partial(cut, quarantine, size) for size in (0, 20))],
        ".writing": [(folder / ".writing").mkdir],
    }
    for name, ways in harm.items():
        for way in ways:
            way()
            assert [fault.file for fault in verify().faults] == [name]
            write(max_bad_fraction=1.0)
            assert problems(verify()) == []
            found = {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
            assert found == truth


def test_a_readme_of_the_users_own_is_left_alone(write, verify):
    folder = write()
    (folder / "README.md").write_text("# Our corpus\n")
    assert problems(verify()) == []
    write()
    assert (folder / "README.md").read_text() == "# Our corpus\n"


def test_a_stray_file_at_the_top_is_named_and_is_no_problem(write, verify):
    folder = write()
    (folder / "notes.txt").write_text("mine")
    report = verify()
    assert (problems(report), report.strays) == ([], ["notes.txt"])


WRONG_FIELDS = {
    "fingerprint": "0" * 64,
    "windows__end_of_text": 97,
    "windows__pad_id": 97,
    "windows__left_over__train__tokens": 1,
    "windows__padding__train": 2,
    "windows__end_of_text_is_target": False,
    "windows__order": "shuffled",
    "tokenizer__name": "gpt2",
    "tokenizer__vocab_size": 300,
    "tokenizer__special_tokens": {},
    "corpus__documents": 1,
    "corpus__characters": 7,
    "corpus__bytes": 7,
    "corpus__special_text_found": 7,
    "splits__train__num_tokens": 9,
    "splits__train__num_documents": 9,
    "splits__train__stride": 2,
    "config__shards__windows_per_group": 4,
}


@pytest.mark.parametrize("name", WRONG_FIELDS)
def test_a_wrong_field_under_a_right_hash_is_a_problem_of_the_manifest(write, verify, name):
    folder = write(tail="pad", documents="separate", validation=0.4)
    sign_anew(folder, **{name: WRONG_FIELDS[name]})
    assert "manifest.json" in {fault.file for fault in verify().faults}


def test_a_split_that_was_taken_out_is_a_problem(write, verify):
    folder = write(validation=0.4)
    manifest = read_manifest(folder)
    write_manifest(folder, dataclasses.replace(manifest, splits={"train": manifest.splits["train"]}))
    for file in (folder / "data").glob("validation-*"):
        file.unlink()
    assert ("manifest.json", "splits are train, but train, validation by the token store") in problems(verify())


def leaves(value, path=()):
    """The path of every value inside JSON."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in inside:
        yield (*path, key)
        yield from leaves(inner, (*path, key))


@pytest.mark.slow
@pytest.mark.parametrize("value", [None, -1, 10**18, 10**30, 1.5, "x", "", [], {}, True, [None], {"x": None}])
def test_verify_never_raises_for_a_field_of_any_type_or_size(write, verify, tmp_path, value):
    folder = write(tail="pad", documents="separate", windows_per_group=400, windows_per_shard=400)
    shutil.rmtree(tmp_path / "cache")
    whole = json.loads((folder / "manifest.json").read_text())
    for path in leaves(whole):
        content = copy.deepcopy(whole)
        inner = content
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value
        (folder / "manifest.json").write_text(json.dumps(sign(content)))
        for fault in verify().faults:
            assert len(fault.problem) < 600, path


def test_shards_that_changed_places_are_refused(write, verify):
    folder = write(compression="none", windows_per_group=20, windows_per_shard=40)
    files = itertools.combinations(sorted((folder / "data").iterdir()), 2)
    one, other = next(pair for pair in files if pair[0].stat().st_size == pair[1].stat().st_size)
    swap(one, other)
    with pytest.raises(OSError, match=rf"{one.name} cannot be read: its footer does not have the sha256"):
        batches(folder)
    assert {fault.file for fault in verify().faults} == {f"data/{one.name}", f"data/{other.name}"}
    write(compression="none", windows_per_group=20, windows_per_shard=40)
    assert problems(verify()) == [], "the write stage sees it too"


def test_shards_of_release_0_1_0_that_changed_places_are_refused(tmp_path):
    shutil.copytree(Path(__file__).parent / "data" / "release-0.1.0" / "separate", tmp_path / "old")
    swap(*(tmp_path / "old" / "data" / f"train-0000{number}-of-00006.parquet" for number in (2, 3)))
    with pytest.raises((ValueError, OSError), match=r"train-0000[23]-of-00006.parquet"):
        batches(tmp_path / "old")


def swap(one, other):
    spare = one.with_name("spare")
    one.rename(spare)
    other.rename(one)
    spare.rename(other)


def test_a_shard_of_other_rows_than_its_manifest_says_is_refused_before_it_is_decoded(write, verify, monkeypatch):
    folder = write()
    edited = edit(folder, lambda _: None, groups=(20, 20, 20, 19))
    decode = pq.ParquetFile.read_row_group

    def watch(file, *arguments, **options):
        assert file.metadata.num_rows != 79, "it was decoded"
        return decode(file, *arguments, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", watch)
    with pytest.raises(OSError, match="its row group 3 has 19 windows, but 20 by the manifest"):
        batches(folder)
    assert [fault.file for fault in verify().faults] == [edited]


@pytest.mark.slow
def test_every_changed_byte_of_a_token_store_is_refused(write, verify, tmp_path):
    folder = write(tail="pad", documents="separate")
    (file,) = (tmp_path / "cache" / "stores").iterdir()
    intact, store = file.read_bytes(), open_store(file)
    said = []
    for offset in range(len(intact)):
        for bit in range(8):
            damaged = bytearray(intact)
            damaged[offset] ^= 1 << bit
            file.write_bytes(damaged)
            try:
                assert open_store(file) == store, "only space between fields may change unseen"
            except (ValueError, OSError) as error:
                said.append(str(error))
    assert len(said) > 7 * len(intact)
    assert all(len(one.splitlines()) == 1 for one in said)
    file.write_bytes(intact.replace(b'"end_of_text": 256', b'"end_of_text": 97'))
    (fault,) = verify().faults
    assert fault.file == str(file)
    assert "does not have the sha256 recorded in it" in fault.problem
    assert folder.is_dir()


def test_what_can_be_compared_in_a_token_store_without_a_hash_is_compared(tmp_path):
    shutil.copytree(Path(__file__).parent / "data" / "release-0.1.0" / "cache", tmp_path / "cache")
    for file in (tmp_path / "cache" / "stores").iterdir():
        text = file.read_text()
        assert open_store(file).tokenizer["vocab_size"] in {257, 50257}
        for was, now in (('"end_of_text": ', '"end_of_text": 1'), ('"validation": ', '"valadation": ')):
            file.write_text(text.replace(was, now))
            with pytest.raises(ValueError, match="is not a token store"):
                open_store(file)
        file.write_text(text.replace('"vocab_size": ', '"vocab_size": 999'))
        with pytest.raises(ValueError, match="other integers"):
            open_store(file)


EMPTY_SPLIT = {"max_length": 1, "stride": 1, "shards": []}
EMPTY_SPLIT |= dict.fromkeys(("num_documents", "num_tokens", "num_windows"), 0)
FILES = ("manifest.json", "data/train-00000-of-00003.parquet", "store", "chunk.json", "train.npy")


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), Path.mkdir])
@pytest.mark.parametrize("name", FILES)
def test_only_regular_files_are_read(write, verify, tmp_path, make, name):
    folder = write()
    (store,) = (tmp_path / "cache" / "stores").iterdir()
    (chunk,) = (tmp_path / "cache" / "chunks").iterdir()
    path = store if name == "store" else chunk / name if name in ("chunk.json", "train.npy") else folder / name
    path.unlink()
    make(path)
    if path.is_relative_to(folder):
        assert verify().faults
        with pytest.raises((ValueError, OSError), match=r"is not a regular file|Is a directory"):
            batches(folder)
    else:
        with pytest.raises((ValueError, OSError), match=r"is not a regular file"):
            open_store(store)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("store", "../../../../../dev/zero"),
        ("splits", {"../../secret/x": EMPTY_SPLIT}),
        ("splits__train__num_windows", 10**18),
        ("splits__train__max_length", 10**12),
        ("windows__max_length", 10**12),
    ],
)
def test_a_manifest_that_names_what_cannot_be_is_refused(write, verify, name, value):
    folder = write()
    sign_anew(folder, **{name: value})
    with pytest.raises(ValueError, match=r"manifest.json: malformed"):
        read_manifest(folder)
    assert [fault.file for fault in verify().faults] == ["manifest.json"]


def test_a_manifest_of_more_windows_than_its_bytes_can_hold_is_refused(write):
    folder = write()
    sign_anew(folder, splits__train__num_windows=10**15)
    with pytest.raises(ValueError, match="bytes are too few for num_windows 1000000000000000"):
        read_manifest(folder)


def test_a_manifest_of_format_1_with_more_windows_than_its_bytes_can_hold_is_refused(write):
    folder = write()
    shards = write_format_1(folder)["splits"]["train"]["shards"]
    for shard in shards:
        shard["row_groups"], shard["num_windows"] = [10**15], 10**15
    sign_anew(folder, splits__train__shards=shards, splits__train__num_windows=len(shards) * 10**15)
    with pytest.raises(ValueError, match="bytes are too few for num_windows 1000000000000000"):
        read_manifest(folder)


def test_a_chunk_that_names_files_outside_its_folder_is_refused(write, verify, tmp_path):
    write()
    (store,) = (tmp_path / "cache" / "stores").iterdir()
    (path,) = (tmp_path / "cache" / "chunks").glob("*/chunk.json")
    chunk = find_chunk(tmp_path / "cache", path.parent.name)
    files = {**chunk.files, "../../../../../../dev/zero": [0, 0]}
    path.write_text(chunk_text(dataclasses.replace(chunk, files=files)))
    with pytest.raises(ValueError, match="it names other files than"):
        open_store(store)
    assert [fault.file for fault in verify().faults] == [str(path.parent)]


def test_deeply_nested_json_is_one_line(write, verify, tmp_path):
    folder = write()
    (store,) = (tmp_path / "cache" / "stores").iterdir()
    for file in (folder / "manifest.json", store):
        file.write_text("[" * 100_000)
    with pytest.raises(ValueError, match="nested too deeply") as refused:
        read_manifest(folder)
    assert len(str(refused.value)) < 300
    with pytest.raises(ValueError, match="nested too deeply"):
        open_store(store)


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
