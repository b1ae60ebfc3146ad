"""How windows are divided into row groups and files.

The row group is the unit of reading, shuffling and resuming. The division depends on the windows alone, not on the
machine, so the same windows become the same files everywhere. A reader that cuts windows directly from a token store
has the same row groups, and therefore the same sample order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.settings import ShardsConfig, WindowConfig

# The default row group is the largest within both limits: a column decodes to at most 8 MiB of int32. Overlapping
# windows gain from more text, since each row group stores its first window's text again; disjoint ones do not. A reader
# keeps the text of overlapping windows once, so this takes no memory.
ROW_GROUP_TEXT_TOKENS = 1 << 19
ROW_GROUP_WINDOW_TOKENS = 1 << 21
SHARDS_PER_SPLIT = 32  # files of a split as long as each has MIN_UNITS to MAX_UNITS: work for this many cores
MIN_UNITS = 8  # of ROW_GROUP_TEXT_TOKENS window tokens: 2^22 in all, about 4 MB of disjoint windows
MAX_UNITS = 128  # 2^26 window tokens, about 64 MB of disjoint windows


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How windows are divided into row groups and files."""

    windows_per_group: int
    windows_per_shard: int | None  # None: chosen for each split by `shard_size`
    unit: int  # a shard's size is chosen in multiples of this many windows: a row group of disjoint ones
    compression: str

    def shard_size(self, num_windows: int) -> int:
        """Return the windows in each file but the last, in a split of `num_windows`."""
        if self.windows_per_shard:
            return self.windows_per_shard
        units = -(-num_windows // self.unit)
        size = min(max(MIN_UNITS, -(-units // SHARDS_PER_SPLIT)), MAX_UNITS) * self.unit
        return max(1, size // self.windows_per_group) * self.windows_per_group


def choose_layout(window: WindowConfig, shards: ShardsConfig, *, is_even: bool = True) -> Layout:
    """Return the layout that the config asks for; sizes that it leaves out are chosen here.

    All row groups of a split have the same size but the last one. If `windows_per_shard` alone is given, its row groups
    are the fewest that are not larger than the default, and it is rounded down to a multiple of them. In data sets of
    format 1 (`is_even=False`) the last row group of each shard was smaller instead.
    """
    overlaps = shards.order == "sequential" and window.documents == "join"
    new = min(window.stride_tokens, window.max_length) if overlaps else window.max_length
    chosen = max(1, min(ROW_GROUP_TEXT_TOKENS // new, ROW_GROUP_WINDOW_TOKENS // window.max_length))
    per_shard = shards.windows_per_shard
    per_group = shards.windows_per_group or min(chosen, per_shard or chosen)
    if is_even and per_shard and per_shard % per_group:
        groups = -(-per_shard // per_group)
        per_group = per_shard // groups
        per_shard = per_group * groups
    return Layout(
        windows_per_group=per_group,
        windows_per_shard=per_shard,
        unit=shards.windows_per_group or max(1, ROW_GROUP_TEXT_TOKENS // window.max_length),
        compression=shards.compression,
    )
