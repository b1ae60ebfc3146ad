"""How windows are divided into row groups and files.

The row group is the unit of reading, shuffling and resuming. The division depends on the windows alone, never on the
machine, so the same windows become the same files everywhere; and a reader of windows that were never written (straight
from a token store) has the same groups, and with them the same order.
"""

from __future__ import annotations

from dataclasses import dataclass

# A row group decodes to 2 MiB of int32 for each column. Windows of 256 tokens with stride 1 take 7.3 bytes per token of
# text in groups of 2^18 tokens, 6.5 in 2^19, 6.2 in 2^20: each group stores the text under its first window anew.
GROUP_TOKENS = 1 << 19
SHARDS = 32  # files of a split while each has MIN_GROUPS to MAX_GROUPS row groups: work for so many cores
MIN_GROUPS = 8  # 2^22 tokens, about 8 MB of disjoint windows
MAX_GROUPS = 128  # 2^26 tokens, about 130 MB of disjoint windows


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How windows are divided into row groups and files."""

    windows_per_group: int
    windows_per_shard: int | None  # None: chosen for each split by `shard_size`
    compression: str

    def shard_size(self, num_windows: int) -> int:
        """Windows in each file of a split of so many, the last file excepted."""
        if self.windows_per_shard:
            return self.windows_per_shard
        groups = -(-num_windows // self.windows_per_group)
        return min(max(MIN_GROUPS, -(-groups // SHARDS)), MAX_GROUPS) * self.windows_per_group


def choose_layout(
    *, max_length: int, windows_per_group: int | None, windows_per_shard: int | None, compression: str
) -> Layout:
    """The layout that the config asks for; what it leaves open is chosen by size.

    A shard holds whole row groups, but for one case: `windows_per_shard` alone is given and is no multiple of the group
    that the size asks for. Then the last group of each shard is smaller.

    Raises:
        ValueError: `windows_per_shard` is no multiple of `windows_per_group`, both given.

    """
    group = windows_per_group or min(max(1, GROUP_TOKENS // max_length), windows_per_shard or GROUP_TOKENS)
    if windows_per_shard and windows_per_group and windows_per_shard % group:
        raise ValueError(
            f"shards.windows_per_shard={windows_per_shard}: must be a multiple of shards.windows_per_group={group}, "
            "so that every row group but the last is full"
        )
    return Layout(windows_per_group=group, windows_per_shard=windows_per_shard, compression=compression)
