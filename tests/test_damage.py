"""Random damage to whatever decides what IDs mean: never wrong IDs in silence, never an abort, one line for each.

The damage happens in child processes, because what the library under us did with it was to end the process.
"""

import json
import os
import shutil
from pathlib import Path

import pytest
from support import run_program, sections

from pipeline import ShardLoader, write_shards

RELEASE = Path(__file__).parent / "data" / "release-0.1.0"
FLIPS = os.environ.get("STRIDEMILL_FLIPS", "60")  # of each of the four kinds of damage, to data sets of both releases

# Flips a bit of one of some files at a time, and reads everything that the file decides.
FLIP = """
import hashlib, json, random, sys
from pathlib import Path
from pipeline import ShardLoader, StoreWindows, WindowConfig, verify_shards
from pipeline.tokens.store import forget_files

kind, folder, cache, state, flips, seed = sys.argv[1:]
folder, cache, state = Path(folder), Path(cache), Path(state)
files = {
    "shards": sorted(folder.glob("data/*")),
    "manifest": [folder / "manifest.json"],
    "cache": sorted([*cache.glob("stores/*"), *cache.glob("chunks/*/*")]),
    "state": [state],
}[kind]
(store,) = cache.glob("stores/" + json.loads((folder / "manifest.json").read_text())["store"] + ".json")
window = WindowConfig(max_length=12, stride=12, tail="pad", documents="separate")

def read():
    options = dict(batch_size=3, shuffle="full", seed=5, drop_last=False, rank=0, world_size=1)
    loader = ShardLoader(StoreWindows(store, window) if kind == "cache" else folder, **options)
    if kind == "state":
        loader.load_state_dict(json.loads(state.read_text()))
    rows = [(b.window_ids.tolist(), b.input_ids.tolist(), b.target_ids.tolist()) for b in loader]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()

def check(file):
    try:
        found = read()
    except (ValueError, OSError) as error:
        assert len(str(error).splitlines()) == 1, error
        assert len(str(error)) < 1000, error
        counts["refused"] += 1
    else:
        legal = kind == "state" and json.loads(state.read_text()) != known  # another state that a loader may have
        assert legal or found == truth, "other IDs in silence"
        counts["harmless"] += 1
    if random.random() < 0.1:
        report = verify_shards(folder, cache_path=cache)
        assert all(len(fault.problem.splitlines()) == 1 for fault in report.faults), report.faults
        assert report.faults or kind != "shards", "verify sees every bit of a shard"

truth, known, counts = read(), json.loads(state.read_text()), {"refused": 0, "harmless": 0}
random.seed(int(seed))
for _ in range(int(flips)):
    file = random.choice(files)
    intact = file.read_bytes()
    damaged = bytearray(intact)
    # footers and headers are a small part of a file, and where the damage is worst
    offset = random.randrange(len(intact)) if random.random() < 0.5 else -1 - random.randrange(min(len(intact), 1500))
    damaged[offset] ^= 1 << random.randrange(8)
    print(f"{file.name} byte {offset} is {damaged[offset]}", file=sys.stderr, flush=True)  # the last before an abort
    file.write_bytes(damaged)
    forget_files()
    try:
        check(file)
    finally:
        file.write_bytes(intact)
forget_files()
assert read() == truth
print(json.dumps(counts))
"""


@pytest.fixture(scope="module")
def data_sets(tmp_path_factory):
    """A data set of this release and one of release 0.1.0, of the same text, each with its cache and a state."""
    folder = tmp_path_factory.mktemp("damage")
    for name in ("separate", "cache"):
        shutil.copytree(RELEASE / name, folder / "old" / name)
    options = json.loads((RELEASE / "expected.json").read_text())["options"]["separate"]
    options["corpus_path"] = str(RELEASE / options["corpus_path"])
    write_shards(folder / "new" / "separate", **sections(**options, cache_path=folder / "new" / "cache"))
    for age in ("old", "new"):
        loader = ShardLoader(folder / age / "separate", batch_size=3, shuffle="full", seed=5, rank=0, world_size=1)
        next(iter(loader))
        (folder / age / "state.json").write_text(json.dumps(loader.state_dict()))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["shards", "manifest", "cache", "state"])
def test_no_damage_gives_other_ids_or_ends_the_process(data_sets, kind):
    for age in ("old", "new"):
        folder = data_sets / age
        files = (folder / "separate", folder / "cache", folder / "state.json")
        done = run_program("-c", FLIP, kind, *files, FLIPS, "7", timeout=3000)
        assert done.returncode == 0, f"{age}: {done.stderr[-1500:]}"
        counts = json.loads(done.stdout)
        assert counts["refused"] > 0, f"{age}: {counts}"
