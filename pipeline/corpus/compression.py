"""Read files as blocks of bytes, plain or compressed, in bounded memory; errors name the file and the byte.

The standard library's readers ignore what follows a bzip2 or xz stream if it is not such a stream, and read an empty
file as an empty text. Both lose data silently, so the streams are walked here: a file is one or more gzip members,
or bzip2 or xz streams, zero bytes may pad them, and anything else, or an end in the middle, is an error.

Cost on one core: gzip unpacks 300 MB/s, zstd 700, xz 100 to 200, bzip2 40. A compressed file is read by one worker.
"""

from __future__ import annotations

import bz2
import lzma
import os
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pipeline.corpus.opened import TO_END, ObjectFile, open_raw, size_of
from pipeline.corpus.spool import SpooledFile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from io import RawIOBase

    from pipeline.corpus.opened import Stamp
    from pipeline.corpus.spool import SpooledRange

BLOCK_BYTES = 8 << 20  # of unpacked content: each switch from parsing to encoding empties the CPU's caches
RAW_BYTES = 256 << 10  # of a file that is hashed or searched
MAX_WINDOW = 128 << 20  # a window above this is refused, as zstd does: its memory is taken from each worker
INPUT_BYTES = 256 << 10  # of packed content: also how precisely an error knows its byte


class _Gzip:
    """zlib's decompressor with the methods of bz2's and lzma's."""

    def __init__(self) -> None:
        self._core = zlib.decompressobj(31)  # 31: a gzip header and checksum around the data

    def decompress(self, data: bytes, limit: int) -> bytes:
        return self._core.decompress(self._core.unconsumed_tail + data, limit)

    @property
    def eof(self) -> bool:
        return self._core.eof

    @property
    def unused_data(self) -> bytes:
        return self._core.unused_data

    @property
    def needs_input(self) -> bool:
        return not self._core.unconsumed_tail


DECOMPRESSORS: dict[str, Callable[[], Any]] = {
    ".gz": _Gzip,
    ".bz2": bz2.BZ2Decompressor,
    ".xz": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MAX_WINDOW + (1 << 20)),
}
ALIASES = {".gzip": ".gz", ".bzip2": ".bz2", ".zstd": ".zst"}  # other usual spellings
SUFFIXES = (*DECOMPRESSORS, ".zst", *ALIASES)


def packing_of(path: str | Path) -> str | None:
    """Return how a file's name says that it is compressed: `.gz`, `.bz2`, `.xz`, `.zst` or None."""
    if not str(path).lower().endswith(SUFFIXES):  # most do not, and this takes a tenth of the time
        return None
    suffix = Path(path).suffix.lower()
    return ALIASES.get(suffix, suffix) if suffix in SUFFIXES else None


def is_packed(path: str | Path) -> bool:
    """Tell whether a file's name says that it is compressed."""
    return packing_of(path) is not None


def read_blocks(
    path: str | Path,
    *,
    start: int = 0,
    stop: int | None = None,
    stamp: Stamp | None = None,
    spooled: SpooledRange | None = None,
) -> Iterator[bytes]:
    """Yield the content of a file, unpacked if its name ends in one of `SUFFIXES`, in blocks of a few megabytes.

    `start` and `stop` are bytes of a plain file. Of an object, `stamp` says which version is meant, and `spooled` has
    what was fetched of it before.

    Raises:
        ValueError: the file cannot be read, or is truncated or damaged; the message names the file and the byte.

    """
    try:
        with _open(path, TO_END if stop is None else stop, stamp, spooled) as file:
            if is_packed(path):
                assert start == 0, f"{path} is compressed, and is never cut"
                yield from _unpack(path, file)
            else:
                yield from _plain(file, start, stop, BLOCK_BYTES)
    except OSError as error:
        raise _unreadable(path, error) from error


def divide_content(content: bytes) -> Iterator[bytes]:
    """Yield what is in memory as `read_blocks` yields a file."""
    for start in range(0, len(content), BLOCK_BYTES):
        yield content[start : start + BLOCK_BYTES]


def read_start(path: str | Path, limit: int) -> tuple[bytes, int, bool]:
    """Return the start of a compressed file: its content, the bytes that it takes on disk, and whether there is more.

    The content has `limit` bytes or up to a block more, unless the file ends before.

    Raises:
        ValueError: as `read_blocks`.

    """
    parts: list[bytes] = []
    size = at = 0
    try:
        with open_raw(path) as file:
            for block in _unpack(path, file):
                if size >= limit:
                    return b"".join(parts), at, True
                parts.append(block)
                size, at = size + len(block), file.tell()
            return b"".join(parts), file.tell(), False
    except OSError as error:
        raise _unreadable(path, error) from error


def read_raw(
    path: str | Path,
    *,
    start: int = 0,
    stop: int | None = None,
    stamp: Stamp | None = None,
    spooled: SpooledRange | None = None,
) -> Iterator[bytes]:
    """Yield the bytes of a file as they are on disk, in blocks that fit a CPU's cache; otherwise like `read_blocks`."""
    try:
        with _open(path, stop, stamp, spooled) as file:
            yield from _plain(file, start, stop, RAW_BYTES)
    except OSError as error:
        raise _unreadable(path, error) from error


def _open(path: str | Path, stop: int | None, stamp: Stamp | None, spooled: SpooledRange | None) -> RawIOBase:
    """Open a file, or what was fetched of an object if that is enough: to its end if `stop` is beyond it or unknown."""
    size = None if stamp is None else stamp[0]
    end = size if stop is None else min(stop, size or stop)
    if spooled is not None and spooled.covers(end):
        return spooled.open(str(path))
    return open_raw(path, stop=stop, stamp=stamp)


def _unreadable(path: str | Path, error: OSError) -> ValueError:
    return ValueError(f"{path}: cannot be read: {error.strerror or error}")


def _plain(file: RawIOBase, start: int, stop: int | None, size: int) -> Iterator[bytes]:
    file.seek(start)
    left = stop - start if stop is not None else None
    while block := _read_full(file, size if left is None else min(left, size)):
        left = None if left is None else left - len(block)
        blocks = [block]
        del block  # while it is used here, it belongs to the caller alone
        yield blocks.pop()
    if left:
        raise ValueError(
            f"{getattr(file, 'name', '')}: is {left} bytes shorter than when this run hashed it; run again"
        )


def _read_full(file: RawIOBase, size: int) -> bytes:
    """Read exactly `size` bytes or to the end: one `read` may return less, at most 2 GiB or because of a signal."""
    parts = []
    while size > 0 and (part := file.read(size)):
        parts.append(part)
        size -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _unpack(path: str | Path, file: RawIOBase) -> Iterator[bytes]:
    size, ending = size_of(file), Path(path).suffix
    suffix = packing_of(path) or ""
    unpack = _unpack_zstd if suffix == ".zst" else _unpack_streams
    unpacked = 0
    try:
        for block in unpack(file, suffix):
            unpacked += len(block)
            yield block
    except EOFError as error:
        raise ValueError(
            f"{path}: truncated: it ends at byte {size}, in the middle of its {ending} data ({unpacked} bytes "
            "were unpacked before that); download or compress it again"
        ) from error
    except (OSError, zlib.error, lzma.LZMAError) as error:
        at = file.tell()
        if "too much memory" in str(error) or "Memory usage limit" in str(error):
            what = "dictionary of more than 128 MiB (xz --lzma2=dict=)"
            if suffix == ".zst":
                what = "window of more than 128 MiB (zstd --long or --ultra)"
            raise ValueError(
                f"{path}: cannot be unpacked: it was compressed with a {what}; compress it again with a smaller one"
            ) from error
        raise ValueError(
            f"{path}: damaged: its {ending} data cannot be unpacked between byte {max(0, at - INPUT_BYTES)} and "
            f"byte {at} ({error}; {unpacked} bytes were unpacked before that); download or compress it again"
        ) from error


def _unpack_streams(file: RawIOBase, suffix: str) -> Iterator[bytes]:
    decompressor = DECOMPRESSORS[suffix]()
    data, ended = b"", False
    while True:
        if not data and not ended and decompressor.needs_input:
            data = file.read(INPUT_BYTES)
            ended = not data
        block = decompressor.decompress(data, BLOCK_BYTES)
        data = b""
        if block:
            yield block
        if decompressor.eof:
            data = decompressor.unused_data.lstrip(b"\0")
            while not data and (more := file.read(INPUT_BYTES)):
                data = more.lstrip(b"\0")
            if not data:
                return
            decompressor = DECOMPRESSORS[suffix]()
        elif ended and not block:
            raise EOFError


def _unpack_zstd(file: RawIOBase, _: str) -> Iterator[bytes]:
    if not size_of(file):
        raise EOFError
    copy: RawIOBase = file
    if not isinstance(file, ObjectFile | SpooledFile):
        copy = os.fdopen(os.dup(file.fileno()), "rb", buffering=0)  # Arrow closes it; both share one offset
    try:
        with pa.CompressedInputStream(pa.PythonFile(copy, "r"), "zstd") as stream:
            while block := stream.read(BLOCK_BYTES):
                yield block
    except OSError as error:
        if "Truncated" in str(error):
            raise EOFError from error
        raise
