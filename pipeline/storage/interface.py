"""What every storage offers, whether it is a local folder or a prefix of a bucket.

A storage reads and writes complete objects (files) by name. Names are relative, with `/` between their parts. What
`put` writes is there completely or not at all. Errors are those of files: FileNotFoundError, FileExistsError,
PermissionError, or another OSError with a number; their `strerror` says what is wrong, in words and without secrets.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

Buffer = bytes | bytearray | memoryview
Content = Buffer | Path  # what is put: bytes, or a local file
Range = tuple[int, int]  # start and stop, in bytes


PART_BYTES = 16 << 20  # larger objects that may replace others are uploaded in parts, where no condition is set
SINGLE_BYTES = 1 << 30  # what is uploaded on a condition, which takes a single request; stores take 5 GB and more


class Entry(NamedTuple):
    """What a listing says of an object."""

    name: str
    size: int
    modified: float  # seconds since 1970
    etag: str  # changes with the content


class Storage(Protocol):
    """A local folder, or a prefix of a bucket."""

    @property
    def uri(self) -> str:
        """Where it is, for messages: a path or a URI, without secrets."""

    @property
    def is_remote(self) -> bool:
        """Whether it is in an object store."""

    def read(self, name: str) -> bytes:
        """Return the content of an object."""

    def read_ranges(self, name: str, ranges: Sequence[Range]) -> list[Buffer]:
        """Return byte ranges of an object, each with exactly its bytes; near ones are read by one request.

        Raises:
            OSError: as the module says; or the object ends before a range does.

        """

    def read_range(self, name: str, start: int, stop: int) -> tuple[Buffer, str]:
        """Return consecutive bytes of an object, and the etag of the version that they are of: one request.

        Raises:
            OSError: as the module says; or the object ends before `stop`.

        """

    def copy_range(self, name: str, start: int, stop: int, take: Callable[[int, Buffer], object]) -> str:
        """Read like `read_range`, but hand the bytes on as they come, each piece with its offset. Return the etag.

        So no more than a piece is in memory. After a lost connection the bytes that are missing are asked for.

        Raises:
            OSError: as `read_range`; or the object was replaced meanwhile.

        """

    def stat(self, name: str) -> Entry:
        """Return what is known of an object."""

    def size(self, name: str) -> int:
        """Return the bytes of an object."""

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """Yield the objects whose name starts with the parts of a prefix, at any depth, ordered by name.

        Raises:
            OSError: as the module says; or an object has a name that leads elsewhere.

        """

    def put(self, name: str, content: Content, *, if_absent: bool = True) -> str:
        """Write an object, and return its etag. One that is there with the same content is as good as written.

        Raises:
            FileExistsError: with `if_absent`, an object of that name has another content.

        """

    def put_if_match(self, name: str, content: Content, etag: str) -> str:
        """Replace an object that still has this etag, and return the new one.

        Raises:
            FileExistsError: it has another one by now, and another content than this.
            FileNotFoundError: it is gone.

        """

    def delete(self, names: Iterable[str]) -> None:
        """Remove objects. One that is missing is no error."""


def exists(storage: Storage, name: str) -> bool:
    """Tell whether an object of that name is there."""
    try:
        storage.stat(name)
    except FileNotFoundError:
        return False
    return True
