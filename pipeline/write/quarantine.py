"""Bad documents: what is kept of each, and the one file in which a user finds them all."""

from __future__ import annotations

import dataclasses
import json
import os
import uuid
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from pipeline.chunk import Chunk
    from pipeline.token_store import TokenStore
    from pipeline.write.documents import BadDocument

FILE = "quarantine.jsonl"


def as_line(bad: BadDocument) -> str:
    r"""A bad document as a line of JSON. First bytes that are not UTF-8 appear as \xNN."""
    fields = dataclasses.asdict(bad) | {"head": bad.head.decode("utf-8", "backslashreplace")}
    return json.dumps(fields, ensure_ascii=False) + "\n"


def write_quarantine(store: TokenStore, path: Path) -> None:
    """Put the bad documents of all chunks, in their order, into one file; with none of them there is no file."""
    if not count_bad(store.chunks):
        path.unlink(missing_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}-{os.getpid()}-{uuid.uuid4().hex[:8]}")
    with temporary.open("wb") as file:
        for chunk in store.chunks:
            if chunk.bad:
                file.write((store.cache / "chunks" / chunk.id / FILE).read_bytes())
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)


def count_bad(chunks: Iterable[Chunk]) -> Counter[str]:
    """Bad documents by reason."""
    bad: Counter[str] = Counter()
    for chunk in chunks:
        bad.update(chunk.bad)
    return bad


def check_fraction(bad: Counter[str], good: int, *, max_bad_fraction: float, path: Path) -> None:
    """ValueError if too large a part of the documents is bad: the counts, the first of them, and where all are."""
    total = good + bad.total()
    if bad.total() <= max_bad_fraction * total:
        return
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(bad.items()))
    examples = ""
    if path.is_file():
        with path.open(encoding="utf-8") as file:
            first = json.loads(file.readline())
        place = f"{first['source']}, {first['place']}" if first["place"] else first["source"]
        examples = f"; the first is {place}: {first['detail']}. All are listed in {path}"
    raise ValueError(
        f"{bad.total()} of {total} documents are bad ({reasons}), more than "
        f"corpus.max_bad_fraction={max_bad_fraction}{examples}"
    )
