"""Open the storage that a path or a URI names."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.storage.local import LocalStorage
from pipeline.storage.names import is_uri, split_uri

if TYPE_CHECKING:
    from pipeline.storage.interface import Storage

SETTINGS = ("AWS_", "GOOGLE_", "AZURE_", "STRIDEMILL_")  # how the names of a client's environment variables start


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


def open_shared(uri: str) -> Storage:
    """Return the storage of a URI; the same one for each call, as long as this process has the same settings.

    A client costs 6 ms of CPU time, and its connections are its own.

    Raises:
        ConfigError: as `open_storage`.

    """
    settings = frozenset((name, value) for name, value in os.environ.items() if name.startswith(SETTINGS))
    return _open_shared(uri, os.getpid(), hash(settings))


@lru_cache(maxsize=64)
def _open_shared(uri: str, _process: int, _settings: int) -> Storage:
    return open_storage(uri)
