"""Turn the errors of an object store's client into those of files, in words and without secrets.

A client's own text is not kept: it may quote a whole answer.
"""

from __future__ import annotations

import errno
import re
from typing import TYPE_CHECKING

from pipeline.base.wording import visible
from pipeline.rules import strip_secrets

if TYPE_CHECKING:
    from pipeline.storage.names import Location

PASSING = (408, 409, 425, 429)  # answers below 500 that may be others a moment later
WITHOUT_KEYS = ("169.254.169.254", "169.254.170.2", "metadata.google.internal")  # who is asked when there are no keys
NO_BUCKET = ("NoSuchBucket", "ContainerNotFound")
KEYS = {  # the environment variables with a store's credentials
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_SKIP_SIGNATURE=true for a public bucket",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}
_STATUS = re.compile(r"status code: (\d{3}) ?([A-Za-z ]*)")
_ASKED = re.compile(r"performing ([A-Z]+) (\w+://[^/\s]+)")
_TLS = re.compile(r"InvalidCertificate|InvalidMessage|invalid peer certificate|AlertReceived|HandshakeFailure")


def explain(error: Exception, location: Location, uri: str) -> OSError:
    """Return an error of the client as one of files; its number says whether it may pass (`base/retry.py`)."""
    name, text = type(error).__name__, str(error)
    found = _STATUS.search(text)
    status = int(found[1]) if found else 0
    asked = _ASKED.search(text)
    request = "LIST" if "list request" in text else asked[1] if asked else ""
    answer = f"the store answered {found[1]} {found[2]}".rstrip() if found else ""
    if asked and any(host in asked[2] for host in WITHOUT_KEYS):
        number, what = errno.EACCES, f"no credentials were found; set {KEYS[location.scheme]}"
    elif any(code in text for code in NO_BUCKET):
        what = (
            f"the bucket {location.bucket} does not exist; check the URI and the store's endpoint, or make the bucket"
        )
        number = errno.ENXIO  # not ENOENT: that is an object, and its absence may be meant
    elif isinstance(error, FileNotFoundError):
        number, what = errno.ENOENT, "there is no such object"
    elif name in ("PermissionDeniedError", "UnauthenticatedError") or status in (401, 403):
        what = (
            f"access is denied ({answer or 'by the store'}{request and f' to {request}'}); check its credentials, and "
        )
        number, what = errno.EACCES, f"{what}that they may read, list and write there as this needs"
    elif name == "InvalidPathError":
        line = visible(text.strip().partition("\n\n")[0]).replace("\n", "\\n")
        number, what = errno.EINVAL, f"it has an object that cannot be read: {line:.200}; rename it"
    elif "non-partial response" in text:
        number, what = errno.EINVAL, "the store ignores which bytes are asked for, and cannot be used; use another one"
    elif 300 <= status < 500 and status not in PASSING:
        number, what = errno.EINVAL, f"{answer}; check the URI, the region and the endpoint"
    elif answer:
        number, what = errno.EIO, answer
    else:
        number, what = _explain_silence(text, f"the store at {strip_secrets(asked[2])}" if asked else "the store")
    return OSError(number, what, uri)


def _explain_silence(text: str, store: str) -> tuple[int, str]:
    """Return the number and the words of an error without an answer."""
    if _TLS.search(text):
        return errno.EINVAL, f"{store} does not speak https, or its certificate is not trusted; check the endpoint"
    if "kind: Connect" in text:
        refused = "refuses connections" if "ConnectionRefused" in text else "cannot be reached"
        why = "has a name that is not known" if "dns error" in text else refused
        return errno.EIO, f"{store} {why}; check the endpoint and the network"
    if "kind: Timeout" in text:
        return errno.EIO, "the store did not answer in time"
    return errno.EIO, "the store cannot be reached, or the connection was lost"
