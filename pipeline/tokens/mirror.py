"""The local copy of a cache that is at a URI, which several machines share.

Chunks and stores are made and read in a local folder, by the same code as those of a local cache. A chunk that the
folder lacks is fetched when it is asked for, and so is a single file of a chunk that another machine has made. One that
is finished here is uploaded, its `chunk.json` last, so that an object store never has half a chunk under its name. No
lock is needed there: a name says what the content must be.

The folder is below the system's folder for temporary files (TMPDIR), one for each user and URI. Its name has the URI,
so a path says by itself what it is a copy of. It may be removed whenever no run uses it. What is fetched is compared
with the checksums in `chunk.json` before it is used, as in a local cache (`chunk.py`).
"""

from __future__ import annotations

import contextlib
import os
from contextlib import nullcontext
from pathlib import Path, PosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

from pipeline.base.atomic import replace_file
from pipeline.base.paths import make_folder, renamed_in_errors
from pipeline.base.reading import parse_fields
from pipeline.base.scratch import own_folder
from pipeline.base.wording import visible
from pipeline.storage.interface import exists
from pipeline.storage.names import is_uri
from pipeline.storage.open import open_shared, open_storage

if TYPE_CHECKING:
    from collections.abc import Iterable
    from contextlib import AbstractContextManager

    from pipeline.storage.interface import Storage

CACHES = "caches"  # the folder of copies: `own_folder`


def find_cache(path: str) -> Path:
    """Return the folder of a cache: its own, or that of the local copy of the cache at a URI.

    Raises:
        ConfigError: the URI is refused.
        ValueError: another user has made the folder of the copy.

    """
    if not is_uri(path):
        return Path(path)
    return find_copy(open_storage(path).uri)


def find_copy(uri: str, *names: str) -> Path:
    """Return the path on this machine of a file or folder in a cache at a URI; raises like `find_cache`."""
    return CopyPath(own_folder(CACHES), quote(uri, safe=""), *names)


class CopyPath(PosixPath):
    """A path in the local copy of a cache. In another process it is one in the copy of that process's machine."""

    __slots__ = ()

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel as the URI, and the names below it."""
        homes = [at for at, part in enumerate(self.parts) if part == own_folder(CACHES).name]
        if not homes or homes[-1] + 1 == len(self.parts):
            return Path, self.parts
        copy, *names = self.parts[homes[-1] + 1 :]
        return find_copy, (unquote(copy), *names)


def find_store_file(path: str | os.PathLike[str]) -> Path:
    """Return the local path of a store's file, which may be given by a URI: `<cache>/stores/<id>.json`."""
    if not is_uri(path):
        return Path(path)
    cache, _, name = os.fspath(path).rpartition("/stores/")
    return find_cache(cache) / "stores" / name


def storage_of(cache: Path) -> Storage | None:
    """Return the storage that a folder is the local copy of, or None if it is a cache itself."""
    uri = unquote(cache.name)
    return open_shared(uri) if cache.parent.name.startswith("stridemill-") and is_uri(uri) else None


def named_cache(cache: Path) -> AbstractContextManager[None]:
    """Let errors of the block name the URI of a cache instead of its local copy."""
    storage = storage_of(cache)
    return renamed_in_errors(str(cache), storage.uri) if storage else nullcontext()


def shown_path(cache: Path, path: Path) -> str:
    """Return a path in a cache for a message: of a local copy, the URI."""
    storage = storage_of(cache)
    return str(path).replace(str(cache), storage.uri) if storage else str(path)


def has_chunk(cache: Path, chunk_id: str) -> bool:
    """Tell whether a chunk is there, in the folder or at the URI that it is a copy of."""
    return (cache / "chunks" / chunk_id).is_dir() or fetch_chunk(cache, chunk_id)


def fetch_chunk(cache: Path, chunk_id: str) -> bool:
    """Fetch a chunk that the folder lacks from the URI that it is a copy of, if it is there. It is not checked here.

    Raises:
        OSError: it cannot be fetched.
        ValueError: its `chunk.json` cannot be read.

    """
    storage, folder = storage_of(cache), cache / "chunks" / chunk_id
    if storage is None:
        return False
    try:
        described = storage.read(f"chunks/{chunk_id}/chunk.json")
    except FileNotFoundError:
        return False
    for name in parse_fields(described).get("files", {}):
        if "/" in name:
            raise ValueError(f"{storage.uri}/chunks/{chunk_id}/chunk.json names a file {visible(name)!r:.99}")
        if not (folder / name).is_file():
            fetch_file(cache, f"chunks/{chunk_id}/{name}")  # `find_chunk` says if it is missing
    make_folder(folder)
    with replace_file(folder / "chunk.json", sync=False) as file:
        file.write(described)
    return True


def publish_chunk(cache: Path, chunk_id: str, files: Iterable[str], *, is_new: bool) -> None:
    """Upload a chunk to the URI that the folder is a copy of, unless it is there; its `chunk.json` last.

    An object with another content than a new chunk's is a damaged one, and is replaced.
    """
    storage, folder = storage_of(cache), f"chunks/{chunk_id}"
    if storage is None or (not is_new and exists(storage, f"{folder}/chunk.json")):
        return
    for name in (*files, "chunk.json"):
        content = cache / folder / name
        try:
            storage.put(f"{folder}/{name}", content)
        except FileExistsError:
            storage.put(f"{folder}/{name}", content, if_absent=False)


def fetch_missing(path: Path) -> None:
    """Fetch a file `<cache>/chunks/<id>/<name>` if the cache is a copy that lacks it. It is not checked here."""
    cache = path.parents[2]
    if not path.is_file() and storage_of(cache):
        fetch_file(cache, path.relative_to(cache).as_posix())


def fetch_file(cache: Path, name: str) -> None:
    """Fetch a file of the cache anew, if it is at the URI that the folder is a copy of."""
    if (storage := storage_of(cache)) is not None:
        with contextlib.suppress(FileNotFoundError):
            content = storage.read(name)
            make_folder((cache / name).parent)
            with replace_file(cache / name, sync=False) as file:
                file.write(content)


def publish_file(cache: Path, name: str) -> None:
    """Upload a file of the cache, if it is there, in the place of one of that name."""
    if (storage := storage_of(cache)) is not None and (cache / name).is_file():
        storage.put(name, (cache / name).read_bytes(), if_absent=False)
