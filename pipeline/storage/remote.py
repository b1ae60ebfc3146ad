"""A prefix of a bucket as a storage, by obstore (the extra `remote`): Amazon S3 and its kin, Google Cloud, Azure.

Guarantees, on a store that honours conditions (`probe.py` finds out):
- An object is there completely or not at all: an upload that is abandoned publishes nothing.
- `put` with `if_absent` has one winner. A store's "exists already" is believed only after the contents are compared:
  a request whose answer was lost is sent again, and then meets its own object.
- What may pass is tried again after growing pauses, up to 17 seconds: server errors, lost connections, cut answers.

Credentials, region and endpoint come from environment variables, as obstore and the store's own tools read them:
AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION, AWS_ENDPOINT_URL; also
GOOGLE_APPLICATION_CREDENTIALS; AZURE_STORAGE_ACCOUNT_NAME, AZURE_STORAGE_ACCOUNT_KEY. They are kept by the client
alone: no message, no repr and no pickle has them. obstore's client hangs in a process that was forked from one that has
used it, so it is refused there.
"""

from __future__ import annotations

import errno
import hashlib
from mmap import ACCESS_READ, mmap
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline.base.retry import PAUSES, retry
from pipeline.storage.client import check_process, open_client
from pipeline.storage.errors import explain
from pipeline.storage.interface import PART_BYTES, Entry
from pipeline.storage.names import Location, check_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from pipeline.storage.interface import Buffer, Content, Range

T = TypeVar("T")

REMOTE_PAUSES = (*PAUSES, 10.0)  # seconds before each further try
UPLOADS = 4  # parts of an object at once
SMALL_BYTES = 1 << 20  # an upload up to that gets no more time than a question
PIECE_BYTES = 256 << 10  # least bytes that are handed on at once
COMPARED_BYTES = 8 << 20  # of an object that is compared, at once
_OPENING = Lock()  # threads that need a client share it


class RemoteStorage:
    """A prefix of a bucket. The client is made at the first request, in this process."""

    is_remote = True

    def __init__(self, location: Location) -> None:
        self._location = location
        self._clients: dict[int, Any] = {}  # by the bytes that a request of theirs may upload

    def __repr__(self) -> str:
        return f"RemoteStorage({self.uri!r})"

    def __getstate__(self) -> Location:
        return self._location

    def __setstate__(self, location: Location) -> None:
        self._location, self._clients = location, {}

    @property
    def uri(self) -> str:
        """The URI."""
        return str(self._location)

    def read(self, name: str) -> bytes:
        """Return the content of an object."""
        return bytes(self._ask(name, lambda store: _obstore().get(store, name).bytes()))

    def read_ranges(self, name: str, ranges: Sequence[Range]) -> list[Buffer]:
        """Return byte ranges of an object: those that are less than 1 MiB apart come by one request."""
        asked = [one for one in ranges if one[0] < one[1]]
        if not asked:
            return [b"" for _ in ranges]
        starts, ends = zip(*asked, strict=True)

        def read(store: Any) -> list[Buffer]:
            found: list[Buffer] = _obstore().get_ranges(store, name, starts=starts, ends=ends)
            for content, (start, stop) in zip(found, asked, strict=True):
                if len(content) != stop - start:
                    what = f"ends at byte {start + len(content):,}, and bytes {start:,} to {stop:,} were asked for"
                    raise OSError(errno.EINVAL, what, self._uri(name))
            return found

        found = iter(self._ask(name, read))
        return [next(found) if start < stop else b"" for start, stop in ranges]

    def read_range(self, name: str, start: int, stop: int) -> tuple[Buffer, str]:
        """Return consecutive bytes of an object, and the etag of the version that they are of."""

        def read(store: Any) -> tuple[Buffer, str]:
            found = _obstore().get(store, name, options={"range": (start, stop)})
            content: Buffer = found.bytes()
            if len(content) != stop - start:
                what = f"ends at byte {start + len(content):,}, and bytes {start:,} to {stop:,} were asked for"
                raise OSError(errno.EINVAL, what, self._uri(name))
            return content, found.meta["e_tag"] or ""

        return self._ask(name, read)

    def copy_range(self, name: str, start: int, stop: int, take: Callable[[int, Buffer], object]) -> str:
        """Hand on consecutive bytes of an object as they come: one request, and one more after each lost connection."""
        at, etag = start, ""

        def copy(store: Any) -> None:
            nonlocal at, etag
            found = _obstore().get(store, name, options={"range": (at, stop)})
            version = found.meta["e_tag"] or ""
            if at > start and version != etag:
                raise OSError(errno.EINVAL, "was replaced while it was read", self._uri(name))
            etag = version
            for piece in found.stream(min_chunk_size=PIECE_BYTES):
                take(at, piece)
                at += len(piece)
            if at != stop:
                what = f"ends at byte {at:,}, and bytes {start:,} to {stop:,} were asked for"
                raise OSError(errno.EINVAL, what, self._uri(name))

        if start < stop:
            self._ask(name, copy)
        return etag

    def stat(self, name: str) -> Entry:
        """Return what the store knows of an object."""
        return _entry(self._ask(name, lambda store: _obstore().head(store, name)), name)

    def size(self, name: str) -> int:
        """Return the bytes of an object."""
        return self.stat(name).size

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """Yield the objects below the prefix, or below a longer one: a request for each thousand."""
        pages, last = None, ""

        def next_page(store: Any) -> list[dict[str, Any]]:
            nonlocal pages
            pages = pages or iter(_obstore().list(store, prefix or None, offset=last or None, chunk_size=1000))
            try:
                return next(pages, [])
            except Exception:
                pages = None  # the next try lists from the last name on
                raise

        while page := self._ask(prefix, next_page, is_prefix=True):
            for one in page:
                if one["path"] != prefix:  # the object `<prefix>/`, by which consoles show a folder
                    yield _entry(one, check_name(one["path"], self.uri))
            last = page[-1]["path"]

    def put(self, name: str, content: Content, *, if_absent: bool = True) -> str:
        """Upload an object."""
        if if_absent:
            return self._put(name, content, "create")
        options = {"chunk_size": PART_BYTES, "max_concurrency": UPLOADS}

        def put(store: Any) -> str:
            return _etag(_obstore().put(store, name, content, mode="overwrite", **options))

        return self._ask(name, put, upload=UPLOADS * min(_size(content), PART_BYTES))

    def put_if_match(self, name: str, content: Content, etag: str) -> str:
        """Replace an object that still has this etag."""
        return self._put(name, content, {"e_tag": etag})

    def delete(self, names: Iterable[str]) -> None:
        """Remove objects, a thousand with a request."""
        names = list(names)
        if names:
            self._ask(names[0], lambda store: _obstore().delete(store, names))

    def _put(self, name: str, content: Content, mode: str | dict[str, str]) -> str:
        """Upload an object on a condition, and look what is there if the store says that it is not met."""
        body = _map(content) if isinstance(content, Path) else content

        def put(store: Any) -> str:
            exceptions = _obstore().exceptions
            try:
                return _etag(_obstore().put(store, name, body, mode=mode, use_multipart=False))
            except (exceptions.AlreadyExistsError, exceptions.PreconditionError):
                found = _entry(_obstore().head(store, name), name)
                if _has_content(store, found, content):
                    return found.etag
                if mode == {"e_tag": found.etag}:  # the store meant "try again"
                    raise OSError(errno.EAGAIN, "the store refused a condition that holds", self._uri(name)) from None
                what = "was changed by another run" if isinstance(mode, dict) else "is there with another content"
                raise FileExistsError(errno.EEXIST, what, self._uri(name)) from None

        return self._ask(name, put, upload=_size(content))

    def _ask(self, name: str, request: Callable[[Any], T], *, is_prefix: bool = False, upload: int = 0) -> T:
        """Return what a request gives, tried again if its error may pass. All errors are those of the interface.

        `upload` is how many bytes are on their way to the store at once.
        """
        if name or not is_prefix:
            check_name(name, self.uri)
        check_process(self.uri)
        # Few clients, since each takes 6 ms.
        upload = max(PART_BYTES, 1 << (upload - 1).bit_length()) if upload > SMALL_BYTES else 0
        with _OPENING:
            if upload not in self._clients:
                self._clients[upload] = open_client(self._location, upload=upload)
            client = self._clients[upload]

        def ask() -> T:
            try:
                return request(client)
            except OSError as error:
                if error.errno is not None:
                    raise
                raise explain(error, self._location, self._uri(name)) from None
            except Exception as error:  # noqa: BLE001 - the client's own classes, which exist only if it is installed
                raise explain(error, self._location, self._uri(name)) from None

        return retry(ask, self._uri(name), pauses=REMOTE_PAUSES)

    def _uri(self, name: str) -> str:
        return f"{self.uri}/{name}" if name else self.uri


def _obstore() -> Any:
    import obstore

    return obstore


def _entry(found: dict[str, Any], name: str) -> Entry:
    return Entry(name, found["size"], found["last_modified"].timestamp(), found["e_tag"] or "")


def _map(path: Path) -> Buffer:
    """Return a file's content, whose memory the system can take back while it is uploaded."""
    with path.open("rb") as file:
        return memoryview(mmap(file.fileno(), 0, access=ACCESS_READ)) if path.stat().st_size else b""


def _size(content: Content) -> int:
    return content.stat().st_size if isinstance(content, Path) else len(content)


def _etag(result: dict[str, Any]) -> str:
    return result["e_tag"] or ""


def _has_content(store: Any, found: Entry, content: Content) -> bool:
    """Compare an object with what was to be put, by size and then by sha256."""
    size = _size(content)
    if found.size != size:
        return False
    if isinstance(content, Path):
        with content.open("rb") as file:
            expected = hashlib.file_digest(file, "sha256").digest()
    else:
        expected = hashlib.sha256(content).digest()
    digest = hashlib.sha256()
    if size <= COMPARED_BYTES:  # without a range, which a store may not know
        return hashlib.sha256(_obstore().get(store, found.name).bytes()).digest() == expected
    for start in range(0, size, COMPARED_BYTES):
        digest.update(_obstore().get_range(store, found.name, start=start, end=min(start + COMPARED_BYTES, size)))
    return digest.digest() == expected
