"""Find out whether a store honours conditions, on which the safety of two writers rests.

Some servers take `If-None-Match` and `If-Match` and write nevertheless. Four small requests at the start of a write
tell; the object that they make is removed.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.storage.interface import Storage


def honours_conditions(storage: Storage, folder: str) -> bool:
    """Tell whether a store refuses to create what is there, and to replace what has changed.

    `folder` is where the object of the probe is made.
    """
    name = f"{folder}/probe-{uuid.uuid4().hex}"
    storage.put(name, b"first")
    try:
        return _is_refused(storage, name, None) and _is_refused(storage, name, '"0"')
    finally:
        storage.delete([name])


def _is_refused(storage: Storage, name: str, etag: str | None) -> bool:
    try:
        if etag is None:
            storage.put(name, b"second")
        else:
            storage.put_if_match(name, b"third", etag)
    except FileExistsError:
        return True
    return False
