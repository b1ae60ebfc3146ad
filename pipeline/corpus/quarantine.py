"""Rejected documents: what is recorded of each, and the file that lists them all.

A line of `quarantine.jsonl` has the fields of `RejectedDocument`; `location` is called `place` there. In a chunk of the
token store the source is a number, since a file's name may change; in a user's list it is the name.
"""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, NoReturn

from pipeline.base.atomic import replace_file
from pipeline.corpus.documents import RejectedDocument

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path


QUARANTINE_NAME = "quarantine.jsonl"
REMEDY = "Mend or remove it, or set corpus.on_bad=quarantine to leave it out"


def as_line(rejected: RejectedDocument) -> str:
    r"""Return a rejected document as a chunk's line of JSON. First bytes that are not UTF-8 appear as \xNN."""
    fields = dataclasses.asdict(rejected) | {"head": rejected.head.decode("utf-8", "backslashreplace")}
    fields["source"] = fields.pop("index")
    named = {"place" if name == "location" else name: value for name, value in fields.items()}
    return json.dumps(named, ensure_ascii=False) + "\n"


def name_sources(path: Path, names: Sequence[str], first: int = 0) -> Iterator[str]:
    """Yield the lines of a chunk's list that belong to some of its sources, with their names."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            fields = json.loads(line)
            source = fields["source"]
            if isinstance(source, str):  # of release 0.1.0
                yield line
            elif first <= source < first + len(names):
                yield json.dumps(fields | {"source": names[source - first]}, ensure_ascii=False) + "\n"


def write_quarantine(lines: Iterable[str], path: Path) -> None:
    """Write lines of rejected documents into one file. Without any line the file is removed.

    A file that has this content already is left as it is, so it may be another user's or on a read-only disk.
    """
    content = "".join(lines).encode("utf-8", "backslashreplace")
    if not content:
        path.unlink(missing_ok=True)
        return
    if path.is_file() and path.stat().st_size == len(content) and path.read_bytes() == content:
        return
    with replace_file(path) as file:
        file.write(content)


def refuse_bad(counts: Counter[str], path: Path) -> None:
    """Raise a ValueError if any document is rejected, for `corpus.on_bad=raise`: the first that the file `path` lists.

    `counts` are rejected documents by reason.
    """
    if counts:
        raise_first(_read_first(path), counts)


def raise_first(first: RejectedDocument | None, counts: Counter[str]) -> NoReturn:
    """Raise a ValueError that names the first rejected document, for `corpus.on_bad=raise`."""
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
        return parse_line(file.readline())


def parse_line(line: str) -> RejectedDocument:
    """Return the rejected document that a line of a user's list describes, without its first bytes."""
    fields = json.loads(line)
    return RejectedDocument(location=fields.pop("place"), index=0, **{**fields, "head": b""})
