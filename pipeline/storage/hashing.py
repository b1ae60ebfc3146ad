"""The sha256 of an object, read in parts."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.storage.interface import Storage

PART_BYTES = 8 << 20


def hash_object(storage: Storage, name: str, size: int) -> str:
    """Return the sha256 of an object of that size, in hex."""
    digest = hashlib.sha256()
    for start in range(0, size, PART_BYTES):
        digest.update(storage.read_ranges(name, [(start, min(start + PART_BYTES, size))])[0])
    return digest.hexdigest()
