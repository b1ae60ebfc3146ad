"""Bad documents: what is kept of each, and the one file in which a user finds them all."""

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


def as_line(bad: RejectedDocument) -> str:
    r"""A bad document as a line of JSON. First bytes that are not UTF-8 appear as \xNN."""
    fields = dataclasses.asdict(bad) | {"head": bad.head.decode("utf-8", "backslashreplace")}
    return json.dumps(fields, ensure_ascii=False) + "\n"


def write_quarantine(parts: Iterable[Path], path: Path) -> None:
    """Join lists of rejected documents, in their order, into one file. Without any list the file is removed."""
    lists = list(parts)
    if not lists:
        path.unlink(missing_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(path) as file:
        for part in lists:
            file.write(part.read_bytes())


def refuse_bad(bad: Counter[str], path: Path) -> None:
    """ValueError if there is any bad document, for `corpus.on_bad=raise`: the first one that the file `path` lists."""
    if not bad:
        return
    first = _read_first(path)
    what = str(first) if first else f"the corpus has bad documents: {count_reasons(bad)}"
    raise ValueError(f"{what}. {REMEDY}")


def check_fraction(bad: Counter[str], good: int, *, max_bad_fraction: float, path: Path) -> None:
    """ValueError if too large a part of the documents is bad: the counts, the first of them, and where all are."""
    total = good + bad.total()
    if bad.total() <= max_bad_fraction * total:
        return
    raise ValueError(
        f"{bad.total()} of {total} documents are bad ({count_reasons(bad)}), more than "
        f"corpus.max_bad_fraction={max_bad_fraction}{first_of_all(path)}"
    )


def first_of_all(path: Path) -> str:
    """Where the first bad document is, and the file that lists all; nothing if that file is gone."""
    first = _read_first(path)
    return f"; the first is {first}. All are listed in {path}" if first else ""


def count_reasons(bad: Counter[str]) -> str:
    """Bad documents by reason, in words."""
    return ", ".join(f"{count} {reason}" for reason, count in sorted(bad.items()))


def _read_first(path: Path) -> RejectedDocument | None:
    if not path.is_file():
        return None
    with path.open(encoding="utf-8") as file:
        return RejectedDocument(**{**json.loads(file.readline()), "head": b""})
