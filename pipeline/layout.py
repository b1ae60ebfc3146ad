"""How windows are divided into row groups and files.

The row group is the unit of reading, shuffling and resuming. The division depends on the windows alone, so a reader
of windows that were never written (straight from a token store) has the same groups, and with them the same order.
"""

from __future__ import annotations

from dataclasses import dataclass

GROUP_TOKENS = 1 << 18  # a row group decodes to 1 MiB of int32 for each column
SHARD_TOKENS = 1 << 26  # 256 groups


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How windows are divided into row groups and files."""

    windows_per_group: int
    windows_per_shard: int
    compression: str


def choose_layout(
    *, max_length: int, windows_per_group: int | None, windows_per_shard: int | None, compression: str
) -> Layout:
    """The layout that the config asks for; what it leaves open is chosen by size. A shard holds whole row groups.

    Raises:
        ValueError: `windows_per_shard` is no multiple of `windows_per_group`, both given.

    """
    group = windows_per_group or min(max(1, GROUP_TOKENS // max_length), windows_per_shard or GROUP_TOKENS)
    shard = windows_per_shard or max(1, SHARD_TOKENS // (group * max_length)) * group
    if windows_per_shard and windows_per_group and shard % group:
        raise ValueError(
            f"shards.windows_per_shard={shard}: must be a multiple of shards.windows_per_group={group}, "
            "so that every row group but the last is full"
        )
    return Layout(windows_per_group=group, windows_per_shard=shard, compression=compression)
