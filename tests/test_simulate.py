"""The simulation of large jobs: it runs, and what it makes is a data set as any other."""

import sys
import tracemalloc

import pytest
import simulate

from pipeline import ShardLoader, read_manifest


def test_a_made_up_data_set_has_its_shards_in_an_index_and_opens_as_any_other(tmp_path):
    made = simulate.make_data_set(tmp_path, num_shards=3)
    split = read_manifest(tmp_path).splits["train"]
    assert made == {
        "tokens": split.num_windows * 1024,
        "shards": 3,
        "index_bytes": (tmp_path / "index.parquet").stat().st_size,
    }
    assert [shard.path[-25:] for shard in split.shards] == [f"train-0000{n}-of-00003.parquet"[-25:] for n in range(3)]
    assert len(ShardLoader(tmp_path, batch_size=8).order) == split.num_windows


def test_a_start_takes_the_same_memory_at_any_size(tmp_path):
    peaks = []
    for num_shards in (1100, 20_000):
        folder = tmp_path / str(num_shards)
        folder.mkdir()
        simulate.make_data_set(folder, num_shards=num_shards)
        tracemalloc.start()
        try:
            found = simulate.measure(folder, ranks=1000, lanes=4000)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
        assert set(found) == {"start_ms", "order_ms", "find_ms", "resume_ms", "memory_mb"}
    assert peaks[1] < peaks[0] + 10_000_000, "the index is looked up, not loaded"


@pytest.mark.slow
def test_the_program_prints_a_row_for_each_size(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["simulate.py"])
    simulate.main(["--shards", "50", "--ranks", "4", "--lanes", "8"])
    head, row = capsys.readouterr().out.splitlines()
    assert head.split() == list(simulate.COLUMNS)
    assert row.split()[1] == "50"
