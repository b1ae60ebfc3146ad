"""What this program wrote, known by what lies in it: a corpus that is a folder takes no text from there.

The rule: below the folder that a user names, no folder is entered that is a data set (`.writing/`, or a `manifest.json`
that begins as ours do), a cache (`CACHEDIR.TAG`), or the folder of a run or of a sweep (`.hydra/` or `multirun.yaml` of
the job `stridemill`). What a user names itself is always taken.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pipeline.atomic import part_of, replace_file

if TYPE_CHECKING:
    from pathlib import Path

TAG = "CACHEDIR.TAG"
MANIFEST = re.compile(rb'\{\s*"fingerprint": "[0-9a-f]{64}",\s*"tokenizer": \{')
SIGNATURE = b"Signature: 8a477f597d28d172789f06886806bc55"  # https://bford.info/cachedir/: backups know it too


def mark_cache(cache: Path) -> None:
    """Say in the folder that it is a cache.

    Two threads may write the mark, and a kill come between them: what is left of the second is written over, too.
    """
    if not _begin(cache / TAG).startswith(SIGNATURE) or part_of(cache / TAG).exists():
        with replace_file(cache / TAG) as file:
            file.write(SIGNATURE + b"\n# stridemill makes all of it again\n")


def is_own(folder: Path) -> bool:
    """Whether a folder is a data set, a cache or a run's."""
    return (
        (folder / ".writing").is_dir()
        or MANIFEST.match(_begin(folder / "manifest.json")) is not None
        or _begin(folder / TAG).startswith(SIGNATURE)
        or b"name: stridemill" in _begin(folder / ".hydra" / "hydra.yaml")
        or b"name: stridemill" in _begin(folder / "multirun.yaml")
    )


def _begin(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(1 << 14)
    except OSError:
        return b""
