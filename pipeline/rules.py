"""The rules that values keep, and how a value that breaks one is refused: in one line, without secrets.

`settings.py` declares which rule a field keeps; the loader's and the tokenizer's arguments keep the same ones. An error
starts with the key, then come the rule, the value and, for a misspelled name, the closest valid one.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import inspect
import json
import operator
import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

MAX_COUNT = 2**62  # numbers of windows and documents
LARGEST_WEIGHT = 1e300  # of a source in a mixture
MAX_TOKEN_ID = 2**31 - 2  # IDs are stored as int32, and so is their number
MAX_SECONDS = 10**6  # a timer's limit is 2^31 milliseconds on some systems
SCHEMES = ("s3", "gs", "az")  # of URIs: Amazon S3 and its kin, Google Cloud Storage, Azure
PATHS = "must be a file, folder or glob, or a list of them"

Function = TypeVar("Function", bound="Callable[..., Any]")


class ConfigError(ValueError):
    """A config that is refused before any work starts, in one line with the key, the rule and the value."""


class WaitingError(ValueError):
    """A part of an array job has done what it can, and the rest waits for other parts: run it again later."""


class ConflictError(ConfigError):
    """Values that are each valid but conflict with each other, as points of a sweep over both may."""


class StrideError(ConflictError):
    """A stride above `max_length`, which loses tokens."""


def has_scheme(path: str) -> bool:
    """Tell whether a path is a URI, such as `s3://bucket/x`."""
    return "://" in path and re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", path) is not None


# A URL in a text ends before a space, a quote or <>. A password may have these: what looks like a login, `user:...@`,
# goes on to its @. URLs in a list have a comma or the like between them. Hydra escapes some characters by backslashes.
_SLASHES = r"(?<=[A-Za-z0-9+.-])\\*:\\*/\\*/"
_LOGIN = r"(?:[^\s@/]{0,200}@)+|[^\s\"'<>/?#@:]*:(?!\d*(?:[/?#,\s\"'<>]|$))[^\n@]{0,200}?@"
_NEXT = rf"[,;\[\](){{}}|][A-Za-z0-9+.-]+{_SLASHES}"
URL = re.compile(rf"({_SLASHES})((?:{_LOGIN})?(?:(?!{_NEXT})(?:\\\s|[^\s\"'<>]))*)")
SECRET_PARAMETER = re.compile(r";[^;=\s]*(?:password|passwd|pwd|secret|token)[^;=\s]*=.*", re.IGNORECASE | re.DOTALL)


def strip_secrets(url: str) -> str:
    """Return a URL without user name, password, query, fragment, and parameters such as `;password=...`."""
    scheme, slashes, rest = url.partition("://")
    return f"{scheme}{slashes}{_strip_after_slashes(rest)}"


def hide_secrets(text: str) -> str:
    r"""Strip the secrets of all URLs in a text, also of those that Hydra has escaped: `s3\://key\:secret@bucket`."""
    return URL.sub(lambda found: f"{found[1]}{_strip_after_slashes(found[2])}", text)


def _strip_after_slashes(rest: str) -> str:
    head = re.split(r"[?#]", rest, maxsplit=1)[0]
    first = head.partition("/")[0]
    is_login = "@" in first or re.search(r":(?!\d*$)", first) is not None  # a password may contain / ? and #
    if is_login and "@" in rest:
        rest = rest.rpartition("@")[2] if "@" not in first else f"{first.rpartition('@')[2]}{rest[len(first) :]}"
    return SECRET_PARAMETER.sub("", re.split(r"[?#]", rest, maxsplit=1)[0])


def shorten(text: str, limit: int = 600) -> str:
    """Cut a long text in the middle."""
    return text if len(text) <= limit else f"{text[: limit // 2 - 3]} ... {text[-(limit // 2 - 2) :]}"


def closest(name: str, valid: Iterable[str]) -> str:
    """Suggest the valid name that is most like a given one: 'did you mean ...?', or nothing if none is close."""
    names = list(valid)
    near = [one for one in names if name and one.startswith(name)] or difflib.get_close_matches(name, names, 1, 0.6)
    return f"did you mean {near[0]!r}?" if near else ""


def names_arguments(function: Function) -> Function:
    """Let a public call name the closest argument when it is given one that it does not have."""
    valid = [name for name in inspect.signature(function).parameters if name != "self"]

    @functools.wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        for name in options:
            if name not in valid:
                owner = function.__qualname__.removesuffix(".__init__")
                raise TypeError(
                    f"{owner}: no argument {name!r}; {closest(name, valid) or 'it has ' + ', '.join(valid)}"
                )
        return function(*arguments, **options)

    return cast("Function", call)


def reject(key: str, rule: str, value: object) -> NoReturn:
    """Refuse a value that breaks a rule."""
    raise ConfigError(f"{key}: {rule}; got {_show(value)}")


def conflict(key: str, rule: str, value: object) -> NoReturn:
    """Refuse a value that another key forbids."""
    raise ConflictError(f"{key}: {rule}; got {_show(value)}")


def _show(value: object) -> str:
    return shorten(hide_secrets(repr(value)).replace("\n", " "), 200)  # the repr of an array has line feeds


def check_part(key: str, value: object) -> str:
    """Return which part of how many, as text: `3/16` is the fourth of sixteen, counted from 0."""
    rule = "must be a part and the number of parts, such as 3/16 for the fourth of sixteen: parts count from 0"
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", value) if isinstance(value, str) else None
    if match is None:
        reject(key, rule, value)
    part, parts = int(match[1]), int(match[2])
    if part >= parts:
        reject(key, f"{rule}. Of {parts} parts the last one is {parts - 1}" if parts else rule, value)
    return f"{part}/{parts}"


def check_bool(key: str, value: object) -> bool:
    """Refuse anything but true and false: a text such as "false" is true in Python."""
    if not isinstance(value, bool):
        reject(key, "must be true or false", value)
    return value


def check_choice(key: str, value: object, valid: Iterable[str]) -> str:
    """Refuse a value that is not one of the valid ones."""
    if not isinstance(value, str) or value not in valid:
        hint = closest(value, valid) if isinstance(value, str) else ""
        reject(key, f"must be one of {', '.join(valid)}{f' ({hint})' if hint else ''}", value)
    return value


def check_text(key: str, value: object, *, empty: bool = True) -> str:
    """Refuse anything but text; also the empty one unless `empty`."""
    if not isinstance(value, str):
        reject(key, "must be text", value)
    if not value and not empty:
        reject(key, "must not be empty", value)
    return value


def check_range(key: str, value: Any, least: int, most: int) -> int:
    """Return a whole number (numpy's becomes Python's); refuse anything outside least .. most, both included."""
    if isinstance(value, bool) or getattr(getattr(value, "dtype", None), "kind", "") == "b":  # or numpy's
        reject(key, "must be a whole number", value)
    try:
        number = operator.index(value)
    except TypeError:
        reject(key, "must be a whole number", value)
    if number < least:
        reject(key, f"must be at least {least}", number)
    if number > most:
        reject(key, f"must be at most {most}", number)
    return number


def check_batch_size(key: str, value: Any) -> int | str:
    """Return a number of windows, or `all`, which means the whole split in one batch."""
    if value == "all":
        return "all"
    if isinstance(value, bool) or not hasattr(value, "__index__") or not 1 <= value <= MAX_COUNT:
        reject(key, "must be a whole number of at least 1, or 'all'", value)
    return operator.index(value)


def check_fraction(key: str, value: float, *, below_1: bool = False) -> float:
    """Refuse anything but a number from 0 to 1, which itself is allowed unless `below_1`."""
    if not is_number(value) or not 0 <= value <= 1 or (below_1 and value == 1):
        reject(key, f"must be a fraction from 0 to {'below ' * below_1}1", value)
    return float(value)


def check_seconds(key: str, value: float) -> float:
    """Refuse anything but a number of seconds above 0 that a clock can wait."""
    if not is_number(value) or not 0 < value <= MAX_SECONDS:
        reject(key, f"must be a number of seconds above 0, at most {MAX_SECONDS:,}", value)
    return float(value)


def check_limit(key: str, value: Any) -> int | float | list[int | float | None]:
    """Return a number of windows (a whole number) or a fraction of them (a float); or a list of these, for sources."""
    value = value.tolist() if hasattr(value, "tolist") else value  # numpy's
    if isinstance(value, list | tuple):
        return [None if one is None else cast("int | float", check_limit(key, one)) for one in value]
    if isinstance(value, float):
        if not 0 < value <= 1:
            reject(key, "as a fraction must be above 0 and at most 1.0, which is all windows", value)
        return value
    if isinstance(value, bool) or not isinstance(value, int):
        reject(key, "must be a number of windows, such as 1000, or a fraction of them, such as 0.1", value)
    return check_range(key, value, 1, MAX_COUNT)


def check_exclude(key: str, value: Any) -> Any:
    """Return a file's path as text, or window numbers as they are: the data set says which ones are valid."""
    if isinstance(value, str | os.PathLike):
        return check_path(key, value, "must name a file of window numbers")
    if not hasattr(value, "__iter__"):
        reject(key, "must be a list of window numbers, or a file of them", value)
    return value


def check_path(key: str, path: object, rule: str = "must name a folder") -> str:
    """Return a path as text; refuse anything else, and URIs: `s3://bucket/x` would be a local folder of that name."""
    name = os.fspath(path) if isinstance(path, os.PathLike) else path
    if not isinstance(name, str) or not name:
        reject(key, rule, path)
    if "\0" in name:
        reject(key, "must not contain the character NUL, which no path has", name)
    if has_scheme(name):
        reject(key, "must be a path on this machine (mount or copy data that is elsewhere)", name)
    return name


def check_place(key: str, path: object, rule: str = "must name a folder or a URI", *, glob: bool = False) -> str:
    """Return a path, or the URI of an object store, as text; with `glob`, it may have wildcards."""
    return (
        check_uri(key, path, glob=glob) if isinstance(path, str) and has_scheme(path) else check_path(key, path, rule)
    )


def check_uri(key: str, uri: str, *, glob: bool = False) -> str:
    """Refuse a URI of another kind of store, and one with a user, a password or a query in it, without repeating it."""
    scheme, _, rest = uri.partition("://")
    bucket, _, name = rest.partition("/")
    if scheme.lower() not in SCHEMES:
        reject(key, f"must be a path on this machine, or a URI with {', '.join(f'{one}://' for one in SCHEMES)}", uri)
    if "@" in bucket or ":" in bucket:
        rule = "must have no user, password or port: credentials and the endpoint come from environment variables"
        reject(key, f"{rule} such as AWS_ACCESS_KEY_ID and AWS_ENDPOINT_URL", strip_secrets(uri))
    if re.search(r"\?[^/]*=" if glob else r"[?#]", rest):
        rule = "must have no query or fragment: credentials come from environment variables"
        named = ", and an object with ? or # in its name is found by the prefix above it" if glob else ""
        reject(key, f"{rule}{named}", strip_secrets(uri))
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", bucket):
        reject(key, f"must name a bucket after {scheme}://", uri)
    parts = name.rstrip("/").split("/") if name.rstrip("/") else []
    if any(part in ("", ".", "..") for part in parts) or not uri.isprintable():
        reject(key, "must have no part that is empty, '.' or '..', and no control character", uri)
    return uri


def check_paths(key: str, path: object, one: Callable[[str, object, str], str] = check_path) -> str | list[str]:
    """Return a path as text or several as a list of texts, each checked by `one`; refuse anything else."""
    if isinstance(path, str | os.PathLike):
        return one(key, path, PATHS)
    paths = list(path) if hasattr(path, "__iter__") else [path]
    if not paths or not all(isinstance(path, str | os.PathLike) for path in paths):
        has_number = not isinstance(path, bytes) and any(map(is_number, paths))
        hint = " (a name that is a number needs quotes)" if has_number else ""
        reject(key, PATHS + hint, path)
    return [one(key, path, PATHS) for path in paths]


def check_list(key: str, values: object, one: Callable[..., Any], *arguments: Any, **options: Any) -> list[Any]:
    """Check each value of a list, which must not be empty."""
    if not isinstance(values, list | tuple) or not values:
        reject(key, "must be a list of at least one value", values)
    return [one(key, value, *arguments, **options) for value in values]


def check_windows(key: str, value: Any) -> int | list[int]:
    """Return the number of a window, or a list of several."""
    if isinstance(value, list | tuple):
        return check_list(key, value, check_range, 0, MAX_COUNT)
    return check_range(key, value, 0, MAX_COUNT)


def check_sources(key: str, sources: object) -> list[dict[str, Any]]:
    """Return the sources of a mixture as `path` and `weight`: a number, or a schedule of [step, number]."""
    rule = "must be a list of sources, each with `path` and maybe `weight`"
    if not isinstance(sources, list | tuple) or not sources:
        reject(key, rule, sources)
    read = []
    for one in sources:
        if not isinstance(one, Mapping) or "path" not in one or not set(one) <= {"path", "weight"}:
            reject(key, rule, one)
        weight = one.get("weight")
        if isinstance(weight, list | tuple):
            weight = _check_schedule(f"{key}: weight", weight)
        elif weight is not None:
            _check_weight(f"{key}: weight", weight)
        read.append({"path": check_place(f"{key}: path", one["path"]), "weight": weight})
    if len({one["weight"] is None for one in read}) > 1:
        reject(key, "must have a weight for each source, or for none", [one["weight"] for one in read][:9])
    return read


def _check_weight(key: str, weight: object) -> float:
    if not is_number(weight) or not 0 <= cast("float", weight) < LARGEST_WEIGHT:
        reject(
            key, f"must be a number from 0 to {LARGEST_WEIGHT:g}, or a schedule [[0, number], [step, number]]", weight
        )
    return cast("float", weight)


def _check_schedule(key: str, schedule: Sequence[Any]) -> list[tuple[int, float]]:
    read: list[tuple[int, float]] = []
    for entry in schedule:
        if not isinstance(entry, list | tuple) or len(entry) != 2:
            reject(key, "must be a number, or a schedule [[0, number], [step, number], ...]", schedule)
        step = check_range(f"{key}: a step", entry[0], 0, MAX_COUNT)
        if step <= read[-1][0] if read else step:
            reject(key, "the steps of a schedule must start with 0 and rise", schedule)
        read.append((step, _check_weight(key, entry[1])))
    if not read:
        reject(key, "must be a number, or a schedule [[0, number], [step, number], ...]", schedule)
    return read


def check_token(key: str, value: object) -> str | int:
    """Return a token's name or ID; refuse anything else."""
    if isinstance(value, str):
        return check_text(key, value, empty=False)
    if not is_number(value) and not hasattr(value, "__index__"):
        reject(key, "must be a token's name or ID", value)
    return check_range(key, value, 0, MAX_TOKEN_ID)


def check_special_tokens(key: str, value: object) -> dict[str, int]:
    """Return a map of names to different IDs; refuse anything else. Text is JSON: Hydra's maps take few names."""
    if isinstance(value, str):
        with contextlib.suppress(ValueError, RecursionError):
            value = json.loads(value)
    if not isinstance(value, Mapping) or not value:
        reject(key, "must map names to IDs, such as {'<|endoftext|>': 50256}", value)
    tokens = {
        check_text(key, name, empty=False): check_range(f"{key}.{name}", token, 0, MAX_TOKEN_ID)
        for name, token in value.items()
    }
    if len(set(tokens.values())) < len(tokens):
        reject(key, "must give each name an ID of its own", value)
    for name in tokens:
        if longer := next((other for other in tokens if other != name and other.startswith(name)), None):
            reject(key, f"must not have a name that another one, {longer!r}, starts with", name)
    return tokens


def is_number(value: object) -> bool:
    """Tell whether a value is a number; true and false, which Python counts as numbers, are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)
