"""Turn the errors of an object store's client into those of files, in words and without secrets.

A client's own text is not kept: it may quote a whole answer.
"""

from __future__ import annotations

import errno
import re
from typing import TYPE_CHECKING

from pipeline.base.wording import visible

if TYPE_CHECKING:
    from pipeline.storage.names import Location

PASSING = (408, 409, 425, 429)  # answers below 500 that may be others a moment later
WITHOUT_KEYS = ("169.254.169.254", "169.254.170.2", "metadata.google.internal")  # who is asked when there are no keys
NO_BUCKET = ("NoSuchBucket", "ContainerNotFound")
_STATUS = re.compile(r"status code: (\d{3}) ?([A-Za-z ]*)")


def explain(error: Exception, location: Location, uri: str) -> OSError:
    """Return an error of the client as one of files; its number says whether it may pass (`base/retry.py`)."""
    name, text = type(error).__name__, str(error)
    found = _STATUS.search(text)
    status = int(found[1]) if found else 0
    answer = f"the store answered {found[1]} {found[2]}".rstrip() if found else ""
    if any(code in text for code in NO_BUCKET):
        number, what = errno.ENOENT, f"the bucket {location.bucket} does not exist"
    elif isinstance(error, FileNotFoundError):
        number, what = errno.ENOENT, "there is no such object"
    elif name in ("PermissionDeniedError", "UnauthenticatedError") or status in (401, 403):
        number, what = errno.EACCES, f"access is denied ({answer or 'by the store'}); check its credentials"
    elif any(host in text for host in WITHOUT_KEYS):
        number, what = errno.EACCES, "no credentials were found; set the store's, such as AWS_ACCESS_KEY_ID"
    elif name == "InvalidPathError":
        line = visible(text.strip().partition("\n\n")[0]).replace("\n", "\\n")
        number, what = errno.EINVAL, f"it has an object that cannot be read: {line:.200}; rename it"
    elif "non-partial response" in text:
        number, what = errno.EINVAL, "the store ignores which bytes are asked for, and cannot be used; use another one"
    elif 300 <= status < 500 and status not in PASSING:
        number, what = errno.EINVAL, f"{answer}; check the URI, the region and the endpoint"
    elif not answer and "kind: Timeout" in text:
        number, what = errno.EIO, "the store did not answer in time"
    else:
        number, what = errno.EIO, answer or "the store cannot be reached, or the connection was lost"
    return OSError(number, what, uri)
