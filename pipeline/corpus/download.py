"""Download a pinned file over https: with its hash checked, a limit of size, and an end to waiting."""

from __future__ import annotations

import hashlib
import http.client
import time
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from pipeline.base.atomic import replace_file
from pipeline.base.paths import make_folder, translate_os_errors
from pipeline.rules import strip_secrets

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class Response(Protocol):
    """What `read_slowly` needs of a response."""

    def read1(self, size: int) -> bytes:
        """Return up to `size` bytes that have arrived."""


SILENCE = 20  # seconds without any byte
PATIENCE = 60  # seconds in which at least `LEAST_BYTES` must arrive
LEAST_BYTES = 1 << 12
BLOCK_BYTES = 1 << 16


def download(url: str, sha256: str, path: Path, *, limit: int) -> None:
    """Download a file of at most `limit` bytes, and check its hash before it gets its name.

    Raises:
        ValueError: the URL is not https, the download fails, is too large or has another hash.

    """
    shown = strip_secrets(url)
    remedy = f"save the text yourself and set corpus.path=the-verdict.txt (sha256 {sha256})"
    if not url.startswith("https://"):
        raise ValueError(f"corpus.url={shown!r}: must start with https://")
    try:
        with urllib.request.build_opener(HttpsOnly).open(url, timeout=SILENCE) as response:
            content = read_slowly(response, limit=limit)
    except (OSError, urllib.error.URLError, http.client.HTTPException, ValueError) as error:
        parts, what = urlsplit(url), str(error)
        secrets = [part for part in (parts.username, parts.password, parts.query) if part]
        if not what or any(secret in what for secret in secrets):  # some errors quote the URL
            what = type(error).__name__
        raise ValueError(f"{shown}: the download failed: {what}; {remedy}") from error
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise ValueError(f"{shown}: the download has sha256 {found}, not {sha256}; {remedy}")
    with translate_os_errors(path.parent, "cache.path"):
        make_folder(path.parent)
        with replace_file(path) as file:
            file.write(content)


class HttpsOnly(urllib.request.HTTPRedirectHandler):
    """Follow redirects to https only."""

    def redirect_request(self, *arguments: Any) -> Any:
        """Return the request that follows a redirect."""
        url: str = arguments[-1]
        if not url.startswith("https://"):
            raise urllib.error.URLError(f"it redirects to {strip_secrets(url)}, which is not https")
        return super().redirect_request(*arguments)


def read_slowly(response: Response, *, limit: int, now: Callable[[], float] = time.monotonic) -> bytes:
    """Read all of a response.

    Raises:
        ValueError: it has more than `limit` bytes, or hardly any arrive for a minute.

    """
    content, since, before = bytearray(), now(), 0
    while block := response.read1(BLOCK_BYTES):
        content += block
        if len(content) > limit:
            raise ValueError(f"it has more than {limit} bytes (corpus.max_document_bytes)")
        if now() - since > PATIENCE:
            if len(content) - before < LEAST_BYTES:
                raise ValueError(f"only {len(content) - before} bytes arrived within {PATIENCE} seconds")
            since, before = now(), len(content)
    return bytes(content)
