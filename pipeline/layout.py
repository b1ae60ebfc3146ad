"""How windows are divided into row groups and files.

The row group is the unit of reading, shuffling and resuming. The division depends on the windows alone, never on the
machine, so the same windows become the same files everywhere; and a reader of windows that were never written (straight
from a token store) has the same groups, and with them the same order.
"""

from __future__ import annotations

from dataclasses import dataclass

# Of the text under a row group, and of all its windows together: a column decodes to at most 8 MiB of int32. Disjoint
# windows gain nothing from more. Each group stores the text under its first window anew, so windows that overlap do;
# and a reader holds their text once, so that it costs no memory.
GROUP_TEXT = 1 << 19
GROUP_WINDOWS = 1 << 21
SHARDS = 32  # files of a split while each has MIN_UNITS to MAX_UNITS: work for so many cores
MIN_UNITS = 8  # of GROUP_TEXT tokens in windows: 2^22 in all, about 4 MB of disjoint windows
MAX_UNITS = 128  # 2^26 tokens, about 64 MB of disjoint windows


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How windows are divided into row groups and files."""

    windows_per_group: int
    windows_per_shard: int | None  # None: chosen for each split by `shard_size`
    unit: int  # windows by which a shard's size is chosen: those of a row group of disjoint windows
    compression: str

    def shard_size(self, num_windows: int) -> int:
        """Windows in each file of a split of so many, the last file excepted."""
        if self.windows_per_shard:
            return self.windows_per_shard
        units = -(-num_windows // self.unit)
        size = min(max(MIN_UNITS, -(-units // SHARDS)), MAX_UNITS) * self.unit
        return max(1, size // self.windows_per_group) * self.windows_per_group


def choose_layout(
    *,
    max_length: int,
    stride: int,
    documents: str,
    order: str,
    windows_per_group: int | None,
    windows_per_shard: int | None,
    compression: str,
) -> Layout:
    """The layout that the config asks for; what it leaves open is chosen by size.

    The windows of a group overlap where all of them are stored in the order of one text.

    A shard holds whole row groups, but for one case: `windows_per_shard` alone is given and is no multiple of the group
    that the size asks for. Then the last group of each shard is smaller.

    Raises:
        ValueError: `windows_per_shard` is no multiple of `windows_per_group`, both given.

    """
    new = min(stride, max_length) if order == "sequential" and documents == "join" else max_length
    chosen = max(1, min(GROUP_TEXT // new, GROUP_WINDOWS // max_length))
    group = windows_per_group or min(chosen, windows_per_shard or chosen)
    if windows_per_shard and windows_per_group and windows_per_shard % group:
        raise ValueError(
            f"shards.windows_per_shard={windows_per_shard}: must be a multiple of shards.windows_per_group={group}, "
            "so that every row group but the last is full"
        )
    return Layout(
        windows_per_group=group,
        windows_per_shard=windows_per_shard,
        unit=windows_per_group or max(1, GROUP_TEXT // max_length),
        compression=compression,
    )
