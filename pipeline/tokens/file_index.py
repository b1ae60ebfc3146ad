"""Where the tokens of small files are: which chunk contains a file's tokens, whatever its name and its neighbours.

    <cache>/files/<rules>.index     records of 68 bytes: the file's unit, the chunk's ID, the file's number in the chunk

A unit is the hash of a file's content and of everything else that decides its tokens; `rules` is the hash of all but
the content. A record is appended before its chunk gets its name, so each finished chunk is listed. The index is a hint:
a chunk says itself which units it contains, and an index that is lost or damaged only costs tokenizing again.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

from pipeline.base.locks import hold
from pipeline.base.paths import allow_read_only, make_folder

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

UNIT_BYTES = 32
RECORD = np.dtype([("unit", f"V{UNIT_BYTES}"), ("chunk", f"V{UNIT_BYTES}"), ("number", "<u4")])
RECORD_BYTES = RECORD.itemsize


def has_index(cache: Path, rules: str) -> bool:
    """Tell whether there are tokens of small files."""
    return _path(cache, rules).exists()


def read_index(cache: Path, rules: str) -> dict[str, tuple[str, int]]:
    """Return for each unit the chunk that contains it, and its number there."""
    path = _path(cache, rules)
    content = path.read_bytes() if path.is_file() else b""
    found = {}
    for at in range(0, len(content) - RECORD_BYTES + 1, RECORD_BYTES):
        unit, chunk = content[at : at + UNIT_BYTES], content[at + UNIT_BYTES : at + 2 * UNIT_BYTES]
        number = int.from_bytes(content[at + 2 * UNIT_BYTES : at + RECORD_BYTES], "little")
        found[unit.hex()] = chunk.hex(), number
    return found


def add_to_index(cache: Path, rules: str, units: Sequence[str], chunk: str) -> None:
    """Append the units of a chunk, unless they are there. What a killed process has written in part is overwritten.

    Another user's index that may not be written, or a hard link to another file, is left as it is.
    """
    path = _path(cache, rules)
    table = np.zeros(len(units), RECORD)
    table["unit"] = np.frombuffer(bytes.fromhex("".join(units)), f"V{UNIT_BYTES}")
    table["chunk"], table["number"] = np.void(bytes.fromhex(chunk)), np.arange(len(units))
    records = table.tobytes()
    with allow_read_only():
        make_folder(path.parent)
        with os.fdopen(hold(path), "r+b") as file:
            content = file.read()
            # -1 is not there, and any other number but a multiple is by chance
            is_there = content.find(records) % RECORD_BYTES == 0
            if not is_there and os.fstat(file.fileno()).st_nlink == 1:
                file.seek(len(content) - len(content) % RECORD_BYTES)
                file.write(records)


def _path(cache: Path, rules: str) -> Path:
    return cache / "files" / f"{rules}.index"
