"""The memory of this process."""

from __future__ import annotations

import contextlib
import errno
import gc
import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator


def peak_memory() -> int:
    """Return the largest resident memory of this process so far, in bytes; it includes mapped token stores."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def anonymous_memory() -> int | None:
    """Return the resident memory of this process now, without mapped files, in bytes; None where no system tells."""
    try:
        _, resident, shared, *_ = Path("/proc/self/statm").read_bytes().split()
    except OSError:
        return None
    return (int(resident) - int(shared)) * resource.getpagesize()


def keep_freed_memory() -> None:
    """Let the C library keep up to 48 MiB of freed memory for the next request.

    glibc returns memory to the system above a limit that starts at 128 KiB and grows with the largest block freed so
    far. Until then every batch's memory is faulted in again, which costs a third of the loader's throughput and 4 % of
    the tokenizer's. A training job soon frees a large block; here one is freed at once, without touching its pages.
    """
    np.empty(3 << 23, np.uint8)


@contextlib.contextmanager
def pause_collection() -> Iterator[None]:
    """Do not search for reference cycles, which takes a third of the time where many objects are made and kept."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextlib.contextmanager
def translate_memory_errors(keys: str) -> Iterator[None]:
    """Turn a lack of memory into a `MemoryError` that says which config keys to lower."""
    try:
        yield
    except (MemoryError, OSError, RuntimeError) as error:
        is_lack = (
            isinstance(error, MemoryError)
            or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
            or "can't start new thread" in str(error)
        )
        if not is_lack:
            raise
        peak = peak_memory() // 2**20
        raise MemoryError(
            f"not enough memory: this process used up to {peak:,} MiB. Lower {keys}, or allow more (`ulimit -v`). "
            "Finished work is kept; run the same command again to resume"
        ) from error
