"""Names of places: URIs of object stores, and the names of objects below a prefix or of files below a folder."""

from __future__ import annotations

import re
from typing import NamedTuple

from pipeline.rules import ConfigError, has_scheme, strip_secrets

SCHEMES = ("s3", "gs", "az")
BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class Location(NamedTuple):
    """A URI of an object store, in parts."""

    scheme: str
    bucket: str
    key: str  # a prefix, an object's name or a glob; empty for the bucket itself

    def __str__(self) -> str:
        """Return the URI."""
        return f"{self.scheme}://{self.bucket}{self.key and '/'}{self.key}"


def is_uri(path: object) -> bool:
    """Tell whether a path is a URI, of an object store or of anything else; a `Path` is none."""
    return isinstance(path, str) and has_scheme(path)


def split_uri(uri: str, *, glob: bool = False) -> Location:
    """Return the parts of a URI; with `glob`, its key may have wildcards.

    Raises:
        ConfigError: it is of another kind of store, has a query, a user or a password in it, or a name that no object
            of ours has; the message repeats no secret.

    """
    shown = strip_secrets(uri)
    scheme, _, rest = uri.partition("://")
    bucket, _, key = rest.partition("/")
    scheme = scheme.lower()
    if scheme not in SCHEMES:
        raise ConfigError(f"{shown}: must be a path or a URI with {', '.join(f'{one}://' for one in SCHEMES)}")
    if "@" in bucket or ":" in bucket:
        raise ConfigError(
            f"{shown}: must not have a user, password or port in it; credentials and the endpoint come from "
            "environment variables such as AWS_ACCESS_KEY_ID and AWS_ENDPOINT_URL"
        )
    is_query = re.search(r"\?[^/]*=", rest) if glob else re.search(r"[?#]", rest)
    if is_query:
        raise ConfigError(f"{shown}: must not have a query or fragment; credentials come from environment variables")
    if not BUCKET.fullmatch(bucket):
        raise ConfigError(f"{shown}: must name a bucket after {scheme}://")
    key = key.rstrip("/")
    if key:
        check_name(key, shown)
    return Location(scheme, bucket, key)


def check_name(name: str, place: str) -> str:
    """Refuse a name that leads elsewhere or that no store takes.

    Raises:
        ValueError: it is absolute, has an empty part, `.` or `..`, or a control character.

    """
    if any(part in ("", ".", "..") for part in name.split("/")) or not all(map(_is_plain, name)):
        raise ValueError(f"{place}: {name!r:.200} is no name of an object: no part may be empty, '.' or '..'")
    return name


def _is_plain(letter: str) -> bool:
    return letter >= " " and letter != "\x7f"
