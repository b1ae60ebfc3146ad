"""Which rank of how many this process is, and the refusal of ranks that would read the same data."""

from __future__ import annotations

import os

import torch

from pipeline.rules import MAX_COUNT, check_range


def find_rank(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """Return this process's rank and the world size: as given, else from `torch.distributed`, else 0 of 1."""
    if (rank is None) != (world_size is None):
        raise ValueError(f"rank, world_size: give both or neither; got rank={rank}, world_size={world_size}")
    if rank is None or world_size is None:
        rank, world_size = group_rank() or (0, 1)
        check_rank(rank, world_size)
        return rank, world_size
    world_size = check_range("world_size", world_size, 1, MAX_COUNT)
    return check_range("rank", rank, 0, world_size - 1), world_size


def group_rank() -> tuple[int, int] | None:
    """Return this process's rank and world size in its process group, None if it has none."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return None
    return distributed.get_rank(), distributed.get_world_size()


def check_rank(rank: int, world_size: int) -> None:
    """Refuse a rank that was not given and is not this process's: several processes would read the same data.

    A loader with the rank of a process group may go to worker processes, which have no group of their own.
    """
    ways = "make the loader after torch.distributed.init_process_group(), or pass rank= and world_size="
    group = group_rank()
    if group is not None and group != (rank, world_size):
        raise ValueError(
            f"rank: this loader reads as rank {rank} of {world_size}, but this process is rank {group[0]} of "
            f"{group[1]} in its group, so ranks would read the same data; {ways}"
        )
    processes = os.environ.get("WORLD_SIZE", "")
    if group is None and world_size == 1 and processes.isdecimal() and int(processes) > 1:
        raise ValueError(
            f"rank: WORLD_SIZE is {processes}, but this process has no process group and no rank was given, so each "
            f"process would read all of the data; {ways}"
        )
