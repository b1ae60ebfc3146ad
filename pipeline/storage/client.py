"""The client of an object store: made from environment variables, once for each bucket and prefix."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, urlsplit

from pipeline.rules import ConfigError, strip_secrets
from pipeline.storage.errors import KEYS

if TYPE_CHECKING:
    from pipeline.storage.names import Location

LOOPBACK = ("127.0.0.1", "::1", "localhost")
# A store that accepts a request and sends nothing for this long has lost it: it is asked again.
STALL_SECONDS = 30.0
STALL_VARIABLE = "STRIDEMILL_STORE_TIMEOUT"
MAX_SECONDS = 86_400  # of a request that makes progress
CONNECT_SECONDS = 5.0  # at most: a connection is made at once, or the address is wrong
SLOWEST = 250_000  # bytes a second: what a large upload may take longer

_users: set[int] = set()  # processes that have used the client: this one, and what it was forked from


def check_installed(location: Location) -> None:
    """Raise a `ConfigError` that says which extra to install, if obstore is not."""
    try:
        import obstore  # noqa: F401 - only to see whether it is there
    except ImportError:
        raise ConfigError(f"{location}: object stores need the package obstore: pip install 'obstore>=0.12'") from None


def open_client(location: Location, *, upload: int = 0) -> Any:
    """Return obstore's client of a prefix, whose requests upload up to so many bytes.

    Raises:
        ConfigError: the endpoint is plain http on another machine, or a setting is missing.

    """
    from obstore import store

    options: dict[str, Any] = {
        "prefix": location.key or None,
        "client_options": {**_time_limits(location, upload), "allow_http": False},
        "retry_config": {"max_retries": 0},  # `RemoteStorage` tries again itself, and compares contents then
    }
    if location.scheme == "s3":
        options |= _s3_options(location, options["client_options"])
    kind = {"s3": store.S3Store, "gs": store.GCSStore, "az": store.AzureStore}[location.scheme]
    try:
        return kind(location.bucket, **options)
    except Exception as error:  # noqa: BLE001 - of obstore's own classes
        what = (str(error).strip().splitlines() or [""])[0]
        raise ConfigError(f"{location}: {what:.200}; check {KEYS[location.scheme]}") from None


def _time_limits(location: Location, upload: int) -> dict[str, str]:
    """Return how long a request may take without an answer, or between two parts of it.

    Raises:
        ConfigError: the environment variable is no number of seconds.

    """
    given = os.environ.get(STALL_VARIABLE)
    try:
        seconds = float(given) if given else STALL_SECONDS
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < MAX_SECONDS:
        raise ConfigError(f"{location}: {STALL_VARIABLE} must be a number of seconds above 0; got {given!r}")
    limit, connect = (f"{round(one * 1000)}ms" for one in (seconds + upload / SLOWEST, min(seconds, CONNECT_SECONDS)))
    return {"read_timeout": limit, "connect_timeout": connect, "timeout": f"{MAX_SECONDS}s"}


def check_process(uri: str) -> None:
    """Refuse a process that was forked from one that has used the client: it would wait for ever.

    Raises:
        OSError: it was.

    """
    here = os.getpid()
    if _users and here not in _users:
        what = (
            "an object store cannot be read in a process that was forked from one that has read it; start processes "
            "by spawn, for a DataLoader with multiprocessing_context='spawn'"
        )
        raise OSError(errno.ENOTSUP, what, uri)
    _users.add(here)


def _s3_options(location: Location, client: dict[str, Any]) -> dict[str, Any]:
    """Return what obstore does not take from the environment itself: the endpoint, and profiles by boto3."""
    options: dict[str, Any] = {}
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
    if endpoint := next((os.environ[name] for name in names if os.environ.get(name)), None):
        options["endpoint"] = endpoint.rstrip("/")
        parts = _split_endpoint(location, endpoint)
        allowed = os.environ.get("AWS_ALLOW_HTTP", "").lower() in ("1", "true")
        if parts.scheme == "http" and not allowed and parts.hostname not in LOOPBACK:
            raise ConfigError(
                f"{location}: the endpoint is plain http on another machine; use https, or set AWS_ALLOW_HTTP=true"
            )
        client["allow_http"] = parts.scheme == "http"
    if not os.environ.get("AWS_ACCESS_KEY_ID") and (profile := _find_profile()):
        options |= profile
    return options


def _split_endpoint(location: Location, endpoint: str) -> SplitResult:
    """Return the parts of an endpoint. The client would end the process at some that are none.

    Raises:
        ConfigError: it is not the address of a server.

    """
    try:
        parts = urlsplit(endpoint)
        is_address = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # brackets or a port that are none
        is_address = False
    if (
        not is_address
        or parts.query
        or parts.fragment
        or "@" in parts.netloc
        or re.search(r"[\s\x00-\x1f\x7f]", endpoint)
    ):
        raise ConfigError(
            f"{location}: AWS_ENDPOINT_URL must be the address of a server, such as http://127.0.0.1:9000, without "
            f"user and query; got {strip_secrets(endpoint)!r:.200}"
        )
    return parts


def _find_profile() -> dict[str, Any]:
    """Return the keys and the region of a profile in ~/.aws, if there is one and boto3 is installed to read it."""
    files = ("~/.aws/credentials", "~/.aws/config")
    if not os.environ.get("AWS_PROFILE") and not any(Path(file).expanduser().is_file() for file in files):
        return {}
    try:
        import boto3
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError:
        return {}
    session = boto3.Session()
    if session.get_credentials() is None:
        return {}
    region = {"region": session.region_name} if session.region_name else {}
    return {"credential_provider": Boto3CredentialProvider(session), **region}
