"""Fetch the large objects of a corpus into a spool: all windows of all objects by one pool of threads."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pipeline.corpus.hashed import listed_stamp
from pipeline.corpus.opened import WINDOW_BYTES, ObjectFile
from pipeline.executor.local import run_tasks

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pipeline.corpus.files import FoundFile
    from pipeline.corpus.opened import Stamp
    from pipeline.corpus.spool import Spool, SpooledRange

THREADS = 8
# What a request asks for. Its bytes are handed on as they come, so it takes no memory; a store may read a whole object,
# or a whole chunk of its own, for each.
FETCH_BYTES = 32 << 20


class Spooled(NamedTuple):
    """An object, and what the spool has of it."""

    path: str
    stamp: Stamp
    range: SpooledRange


def fetch_objects(
    files: Sequence[FoundFile], spool: Spool, advance: Callable[[int], object] = lambda _: None
) -> dict[str, Spooled]:
    """Return what the spool now has of these objects, by path; none if it is full. `advance` counts bytes.

    Raises:
        ValueError: an object cannot be read, or is changed meanwhile.

    """
    found: dict[str, Spooled] = {}
    for file in files:
        stamp = listed_stamp(file)
        assert stamp, "only objects are fetched"
        if (room := spool.reserve(stamp[0], WINDOW_BYTES)) is not None:
            found[file.path] = Spooled(file.path, stamp, room)
    windows = [(one, start) for one in found.values() for start in range(0, one.range.stop, FETCH_BYTES)]
    for size in run_tasks(_fetch_window, windows, workers=THREADS):
        advance(size)
    return found


def _fetch_window(window: tuple[Spooled, int]) -> int:
    (path, stamp, room), start = window
    stop = min(start + FETCH_BYTES, room.stop)
    try:
        with ObjectFile(path, stop=stop, stamp=stamp) as file:
            file.copy(start, room.put)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror or error}") from error
    return stop - start
