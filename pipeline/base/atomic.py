"""Files that are either complete or absent.

A new file is written under a temporary name next to its final path, flushed and renamed. `part_of` makes every such
name and `final_name` recognises it, so the files that a killed run left can be told from others. The writer locks its
temporary file. The operating system releases the lock when the process exits, for whatever reason, so writers of one
path take turns and the next one removes what a killed one left.

A temporary file is always new. Whatever has its name is removed and never opened for writing, so no link is followed.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import uuid
from typing import TYPE_CHECKING, Any

from pipeline.base.locks import create, hold, is_at, try_to_hold

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import BinaryIO

# `.name.part`, and with 8 hex digits if that name is taken; before 0.1.0 `.name-<process>-<8 hex digits>`.
_PART = re.compile(r"\.(?P<name>.+?)(?:(?:\.[0-9a-f]{8})?\.part|-\d+-[0-9a-f]{8})")


def part_of(path: Path, tag: str = "") -> Path:
    """Return the temporary path of a file that is being written."""
    return path.with_name(f".{path.name}{tag and '.'}{tag}.part")


def final_name(name: str) -> str | None:
    """Return the name of the file that a temporary file was to become, or None if `name` is not a temporary one.

    >>> final_name(".manifest.json.part"), final_name("manifest.json")
    ('manifest.json', None)
    """
    match = _PART.fullmatch(name)
    return match["name"] if match else None


@contextlib.contextmanager
def replace_file(path: Path, *, sync: bool = True) -> Iterator[BinaryIO]:
    """Yield a file to write to. It replaces `path` when the block ends; an error leaves `path` as it was.

    Without `sync` a power cut may leave an empty file.
    """
    descriptor, temporary = _create_part(path)
    with os.fdopen(descriptor, "wb") as file:
        try:
            yield file
            file.flush()
            if sync:
                os.fsync(file.fileno())
            temporary.rename(path)
        except BaseException:
            with contextlib.suppress(OSError):  # the first error says what happened
                temporary.unlink()
            raise


def write_text(path: Path, text: str, *, sync: bool = True) -> None:
    r"""Replace a file by a text in UTF-8. A surrogate, from a file name that is not UTF-8, becomes \udcNN.

    A file that has this content already is left as it is, so it may be another user's or on a read-only disk.
    """
    content = text.encode("utf-8", "backslashreplace")
    if path.is_file() and path.read_bytes() == content:
        with contextlib.suppress(OSError):
            remove_part(part_of(path))
        return
    with replace_file(path, sync=sync) as file:
        file.write(content)


def write_json(path: Path, fields: dict[str, Any], *, sync: bool = True) -> None:
    """Replace a file by JSON. A file name that is not UTF-8 is read back as it was."""
    write_text(path, json.dumps(fields, indent=1, ensure_ascii=False) + "\n", sync=sync)


def remove_part(temporary: Path, *, wait: bool = False) -> None:
    """Remove the temporary file of a killed writer, if it is there; a living writer's is left, or waited for.

    Raises:
        OSError: it cannot be locked or removed.

    """
    try:
        descriptor = hold(temporary, create=False) if wait else try_to_hold(temporary, create=False)
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        temporary.unlink(missing_ok=True)  # a link: only its name is removed
        return
    if descriptor is None:
        return
    try:
        if is_at(temporary, descriptor):
            temporary.unlink()
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Flush a folder's list of names to the disk: a rename survives a power cut only after this."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _create_part(path: Path) -> tuple[int, Path]:
    """Create and lock a temporary file for `path`, under another name if one that cannot be removed is in the way."""
    temporary = part_of(path)
    while True:
        try:
            return create(temporary), temporary
        except FileExistsError:
            try:
                remove_part(temporary, wait=True)
            except OSError:
                temporary = part_of(path, uuid.uuid4().hex[:8])
