"""Counters of a loader, for a trainer's log."""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.loader.row_group_cache import RowGroupCache


class Counters:
    """What a loader has done since it was made, in this process and its workers. A copy of it starts from 0."""

    def __init__(self) -> None:
        self.seconds_waited = 0.0  # only the thread that iterates adds to it
        self.row_groups_decoded = self.bytes_decoded = 0
        self.in_workers: Sequence[int] = ()  # row groups that each worker caches
        self._cache: Any = None  # a weak reference: what is cached is gone with its cache
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return Counters, ()

    def watch(self, cache: RowGroupCache) -> None:
        """Count the row groups that a cache holds."""
        self._cache = weakref.ref(cache)

    def add(self, row_groups: int, size: int) -> None:
        """Count row groups that were decoded, and their bytes in memory."""
        with self._lock:
            self.row_groups_decoded += row_groups
            self.bytes_decoded += size

    @property
    def row_groups_cached(self) -> int:
        """Decoded row groups in memory, of this process and its workers."""
        cache = self._cache() if self._cache is not None else None
        return (cache.num_cached if cache is not None else 0) + sum(self.in_workers)

    def read(self, samples: int, *, sources: Sequence[int] = ()) -> dict[str, float]:
        """Return all counters as plain numbers, with what all ranks have received, and of each source."""
        return {
            "seconds_waited": self.seconds_waited,
            "bytes_decoded": self.bytes_decoded,
            "row_groups_decoded": self.row_groups_decoded,
            "row_groups_cached": self.row_groups_cached,
            "samples": samples,
            **{f"source_samples/{number}": count for number, count in enumerate(sources)},
        }
