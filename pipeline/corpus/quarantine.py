"""Rejected documents: what is recorded of each, and the file that lists them all.

A line of `quarantine.jsonl` has the fields of `RejectedDocument`; `location` is called `place` there.
"""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING

from pipeline.base.atomic import replace_file
from pipeline.corpus.documents import RejectedDocument

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Iterable
    from pathlib import Path


QUARANTINE_NAME = "quarantine.jsonl"
REMEDY = "Mend or remove it, or set corpus.on_bad=quarantine to leave it out"


def as_line(rejected: RejectedDocument) -> str:
    r"""Return a rejected document as a line of JSON. First bytes that are not UTF-8 appear as \xNN."""
    fields = dataclasses.asdict(rejected) | {"head": rejected.head.decode("utf-8", "backslashreplace")}
    named = {"place" if name == "location" else name: value for name, value in fields.items()}
    return json.dumps(named, ensure_ascii=False) + "\n"


def write_quarantine(lists: Iterable[Path], path: Path) -> None:
    """Join lists of rejected documents, in their order, into one file. Without any list the file is removed.

    A file that has this content already is left as it is, so it may be another user's or on a read-only disk.
    """
    lists = list(lists)
    if not lists:
        path.unlink(missing_ok=True)
        return
    if path.is_file() and path.stat().st_size == sum(one.stat().st_size for one in lists):
        with path.open("rb") as file:
            if all(file.read(one.stat().st_size) == one.read_bytes() for one in lists):
                return
    with replace_file(path) as file:
        for one in lists:
            file.write(one.read_bytes())


def refuse_bad(counts: Counter[str], path: Path) -> None:
    """Raise a ValueError if any document is rejected, for `corpus.on_bad=raise`: the first that the file `path` lists.

    `counts` are rejected documents by reason.
    """
    if not counts:
        return
    first = _read_first(path)
    what = str(first) if first else f"the corpus has rejected documents: {count_reasons(counts)}"
    raise ValueError(f"{what}. {REMEDY}")


def check_fraction(counts: Counter[str], good: int, *, max_bad_fraction: float, path: Path) -> None:
    """Raise a ValueError if too many documents are rejected: the counts, the first of them, and where all are."""
    total = good + counts.total()
    if counts.total() <= max_bad_fraction * total:
        return
    raise ValueError(
        f"{counts.total()} of {total} documents are rejected ({count_reasons(counts)}), more than "
        f"corpus.max_bad_fraction={max_bad_fraction}{first_of_all(path)}"
    )


def first_of_all(path: Path) -> str:
    """Say which document is the first rejected one, and which file lists all; nothing if that file is missing."""
    first = _read_first(path)
    return f"; the first is {first}. All are listed in {path}" if first else ""


def count_reasons(counts: Counter[str]) -> str:
    """Return the number of rejected documents for each reason, in words."""
    return ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items()))


def _read_first(path: Path) -> RejectedDocument | None:
    if not path.is_file():
        return None
    with path.open(encoding="utf-8") as file:
        fields = json.loads(file.readline())
    return RejectedDocument(location=fields.pop("place"), **{**fields, "head": b""})
