"""How windows are divided into row groups and files.

The row group is the unit of reading, shuffling and resuming. The division depends on the windows alone, never on the
machine, so the same windows become the same files everywhere; and a reader of windows that were never written (straight
from a token store) has the same groups, and with them the same order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.settings import ShardsConfig, WindowConfig

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


def choose_layout(window: WindowConfig, shards: ShardsConfig) -> Layout:
    """Return the layout that the config asks for; what it leaves open is chosen by size.

    The windows of a row group overlap if all of them are stored in the order of one text.

    A shard holds complete row groups, with one exception: if `windows_per_shard` alone is given and is no multiple of
    the row group chosen by size, the last row group of each shard is smaller.
    """
    overlaps = shards.order == "sequential" and window.documents == "join"
    new = min(window.stride_tokens, window.max_length) if overlaps else window.max_length
    chosen = max(1, min(GROUP_TEXT // new, GROUP_WINDOWS // window.max_length))
    return Layout(
        windows_per_group=shards.windows_per_group or min(chosen, shards.windows_per_shard or chosen),
        windows_per_shard=shards.windows_per_shard,
        unit=shards.windows_per_group or max(1, GROUP_TEXT // window.max_length),
        compression=shards.compression,
    )
