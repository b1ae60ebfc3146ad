"""Read again what could not be read: a network file system fails now and then, and is well a second later.

A passing error of the system is met by a few more tries after growing pauses, 7 seconds in all, and is logged once.
What was read but is not what it should be, such as a page whose checksum does not match, is read once more: the fault
may have been on the way. Everything else, a missing file for instance, is raised at once.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

T = TypeVar("T")

PAUSES = (0.1, 0.4, 1.5, 5.0)  # seconds before each further try
PASSING = frozenset(
    getattr(errno, name)
    for name in (
        *("EIO", "ESTALE", "ETIMEDOUT", "EREMOTEIO", "EAGAIN", "EINTR", "EBUSY", "ENOLINK", "ECOMM", "EPROTO"),
        *("ENETDOWN", "ENETUNREACH", "ENETRESET", "ECONNABORTED", "ECONNRESET", "ECONNREFUSED", "ENOTCONN"),
        *("ESHUTDOWN", "EHOSTDOWN", "EHOSTUNREACH", "ENOBUFS"),
    )
    if hasattr(errno, name)
)
pause = time.sleep  # tests replace it


def read_twice(read: Callable[[], T], path: Path | str) -> T:
    """Return `read()`, called once more if what it read is not as it should be; it tries again itself otherwise."""
    return retry(read, path, unclear=(ValueError,), pauses=())


def retry(
    read: Callable[[], T],
    path: Path | str,
    *,
    unclear: tuple[type[Exception], ...] = (),
    pauses: tuple[float, ...] = PAUSES,
) -> T:
    """Return `read()`, called again as the module says.

    Args:
        read: reads something; it may be called several times.
        path: of the file or the object, for the log.
        unclear: errors besides an `OSError` without a number that mean that what was read is not as it should be.
        pauses: before each further try after a passing error; empty if the file has failed before.

    Raises:
        Exception: what the last try raised.

    """
    errors: tuple[type[Exception], ...] = (OSError, *unclear)
    coming, was_read_again = iter(pauses), False
    while True:
        try:
            return read()
        except errors as error:
            number = error.errno if isinstance(error, OSError) else None
            if number is None and not was_read_again:
                was_read_again = True
                continue
            wait = next(coming, None) if number in PASSING else None
            if number is None or wait is None:
                raise
            if wait == pauses[0]:
                what = error.strerror if isinstance(error, OSError) else None
                logging.getLogger(__name__).warning("%s: %s; trying again", path, what or os.strerror(number))
        pause(wait)
