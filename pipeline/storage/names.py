"""Names of places: URIs of object stores, and the names of objects below a prefix or of files below a folder."""

from __future__ import annotations

from typing import NamedTuple

from pipeline.rules import check_uri, has_scheme


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
        ConfigError: `check_uri` refuses it.

    """
    check_uri("URI", uri, glob=glob)
    scheme, _, rest = uri.partition("://")
    bucket, _, key = rest.partition("/")
    return Location(scheme.lower(), bucket, key.rstrip("/"))


def split_found(uri: str) -> Location:
    """Return the parts of a URI that was made from a listing, where a name may have `?` and `#` in it."""
    scheme, _, rest = uri.partition("://")
    bucket, _, key = rest.partition("/")
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
