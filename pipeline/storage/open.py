"""Open the storage that a path or a URI names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.storage.local import LocalStorage
from pipeline.storage.names import is_uri, split_uri

if TYPE_CHECKING:
    from pipeline.storage.interface import Storage


def open_storage(path: str | os.PathLike[str]) -> Storage:
    """Return the storage of a local folder or of a URI: `s3://bucket/prefix`, `gs://...` or `az://...`.

    Nothing is asked of the place yet, and nothing needs to be there.

    Raises:
        ConfigError: the URI is refused (`names.split_uri`), or the extra `remote` is not installed.

    """
    if not isinstance(path, Path) and is_uri(path):
        from pipeline.storage.client import check_installed
        from pipeline.storage.remote import RemoteStorage

        location = split_uri(os.fspath(path))
        check_installed(location)
        return RemoteStorage(location)
    return LocalStorage(Path(path))
