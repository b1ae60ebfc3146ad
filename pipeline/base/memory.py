"""The process's memory: how much it has taken, and how much of it is kept for later."""

import resource
import sys

import numpy as np


def peak_memory() -> int:
    """The most memory that this process has had resident, in bytes; pages of mapped token stores count."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def keep_freed_memory() -> None:
    """Let the C library keep up to 48 MiB of what is freed for what is asked for next.

    glibc gives memory back to the system above a limit that begins at 128 KiB and grows with the largest block that was
    freed so far. Until then the memory of each batch is faulted in anew, which takes a third of the loader's speed and
    4 % of the tokenizer's. A training job soon frees a large block; here one is freed at once, and none of its pages is
    touched.
    """
    np.empty(3 << 23, np.uint8)
