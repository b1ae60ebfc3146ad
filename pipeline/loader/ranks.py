"""Which rank of how many this process is, and the refusal of ranks that would read the same data."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import torch

from pipeline.rules import MAX_COUNT, check_range, reject

if TYPE_CHECKING:
    from typing import TypeAlias

    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh

    Mesh: TypeAlias = ProcessGroup | DeviceMesh

MESH_RULE = "must be a process group or a one-dimensional DeviceMesh, such as device_mesh['dp']"


def find_rank(rank: int | None, world_size: int | None, members: tuple[int, ...] | None = None) -> tuple[int, int]:
    """Return this process's rank and the world size: as given, else those among the members of a mesh.

    Without either they come from `torch.distributed`; without that they are 0 and 1.
    """
    if (rank is None) != (world_size is None):
        raise ValueError(f"rank, world_size: give both or neither; got rank={rank}, world_size={world_size}")
    if rank is None or world_size is None:
        if members is not None:
            return members.index(torch.distributed.get_rank()), len(members)
        rank, world_size = group_rank() or (0, 1)
        check_rank(rank, world_size)
        return rank, world_size
    if members is not None:
        raise ValueError(
            f"mesh, rank: give one of them, since a mesh says which rank of how many this process is; got a mesh and "
            f"rank={rank}, world_size={world_size}"
        )
    world_size = check_range("world_size", world_size, 1, MAX_COUNT)
    return check_range("rank", rank, 0, world_size - 1), world_size


def mesh_members(mesh: Mesh | None) -> tuple[int, ...] | None:
    """Return the ranks in the job of the processes that divide the data: those of a group or mesh with this process."""
    distributed = torch.distributed
    if mesh is None:
        return None
    group: Any = mesh
    dimensions = getattr(group, "ndim", None)
    if dimensions is not None and hasattr(group, "get_coordinate"):
        if dimensions != 1:
            names = getattr(group, "mesh_dim_names", None) or ()
            named = f" ({', '.join(names)})" if names else ""
            raise ValueError(
                f"mesh: has {dimensions} dimensions{named}, but data is divided along one; pass that one, such as "
                f"mesh[{names[0] if names else 'dp'!r}], and ranks that differ only in the others get the same batches"
            )
        group = group.get_group() if group.get_coordinate() else distributed.GroupMember.NON_GROUP_MEMBER
    if not distributed.is_available() or not distributed.is_initialized():
        reject("mesh", MESH_RULE + ", of a job that has called torch.distributed.init_process_group()", mesh)
    if group is distributed.GroupMember.NON_GROUP_MEMBER:
        raise ValueError(
            f"mesh: this process, rank {distributed.get_rank()} of the job, is not part of it, so it has no data to "
            "read; make the loader on the ranks of the mesh only"
        )
    if not isinstance(group, distributed.ProcessGroup):
        reject("mesh", MESH_RULE, mesh)
    return tuple(distributed.get_process_group_ranks(group))


def group_rank() -> tuple[int, int] | None:
    """Return this process's rank and world size in its process group, None if it has none."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return None
    return distributed.get_rank(), distributed.get_world_size()


def check_rank(rank: int, world_size: int, members: tuple[int, ...] | None = None) -> None:
    """Refuse a rank that was not given and is not this process's: several processes would read the same data.

    A loader with the rank of a process group may go to worker processes, which have no group of their own.
    """
    group = group_rank()
    if members is not None:
        if group is not None and group[0] != members[rank]:
            raise ValueError(
                f"rank: this loader reads as rank {rank} of {world_size} of its mesh, which is rank {members[rank]} of "
                f"the job, but this process is rank {group[0]} of {group[1]}; make the loader in each process, with "
                "that process's mesh="
            )
        return
    ways = "make the loader after torch.distributed.init_process_group(), or pass rank= and world_size="
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
