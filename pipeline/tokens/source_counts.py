"""What a chunk counts of each of its sources: a column for each count, since a chunk may have thousands of small files.

In `chunk.json` these are its `columns`. Earlier chunks have `by_source` instead, an object for each source.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.settings import SPLITS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

COUNTS = ("characters", "bytes", "special_text_found", "audited")  # of a source's documents
TOTALS = np.dtype([(name, "<i8") for name in COUNTS])  # of one document
SOURCE = np.dtype([*TOTALS.descr, ("tokens", "<i8", len(SPLITS)), ("num_documents", "<i8", len(SPLITS))])

Reasons = list[tuple[int, str, int]]  # a source's number, a reason, and its documents, in order


def _by_split() -> dict[str, list[int]]:
    return {split: [] for split in SPLITS}


@dataclass(frozen=True, slots=True)
class SourceCounts:
    """The columns of some sources; of none in a chunk of release 0.1.0."""

    unit: list[str] = field(default_factory=list)  # what identifies each source
    characters: list[int] = field(default_factory=list)
    bytes: list[int] = field(default_factory=list)
    special_text_found: list[int] = field(default_factory=list)
    audited: list[int] = field(default_factory=list)
    tokens: dict[str, list[int]] = field(default_factory=_by_split)  # by split, then one for each source
    num_documents: dict[str, list[int]] = field(default_factory=_by_split)
    bad: Reasons = field(default_factory=list)  # rejected documents
    skipped: Reasons = field(default_factory=list)  # documents without text

    def __len__(self) -> int:
        return len(self.unit)

    def total(self) -> dict[str, Any]:
        """Add up the sources: the fields of their chunk."""
        return {
            **{name: sum(getattr(self, name)) for name in COUNTS},
            "tokens": {split: sum(column) for split, column in self.tokens.items()},
            "num_documents": {split: sum(column) for split, column in self.num_documents.items()},
            "bad": _add_reasons(self.bad),
            "skipped": _add_reasons(self.skipped),
        }

    def select(self, start: int, stop: int) -> SourceCounts:
        """Return some consecutive sources."""
        return SourceCounts(
            **{name: getattr(self, name)[start:stop] for name in ("unit", *COUNTS)},
            tokens={split: column[start:stop] for split, column in self.tokens.items()},
            num_documents={split: column[start:stop] for split, column in self.num_documents.items()},
            bad=[(at - start, why, count) for at, why, count in self.bad if start <= at < stop],
            skipped=[(at - start, why, count) for at, why, count in self.skipped if start <= at < stop],
        )

    def columns(self) -> dict[str, Any]:
        """Return what `chunk.json` holds of it."""
        return {one.name: getattr(self, one.name) for one in fields(self)}


def count_sources(
    units: Sequence[str], counts: np.ndarray, bad: Counter[tuple[int, str]], skipped: Counter[tuple[int, str]]
) -> SourceCounts:
    """Return the columns of `units` from a table, `SOURCE` [units], and the documents for each source and reason."""
    return SourceCounts(
        unit=list(units),
        **{name: counts[name].tolist() for name in COUNTS},
        tokens=dict(zip(SPLITS, counts["tokens"].T.tolist(), strict=True)),
        num_documents=dict(zip(SPLITS, counts["num_documents"].T.tolist(), strict=True)),
        bad=[(*key, count) for key, count in sorted(bad.items())],
        skipped=[(*key, count) for key, count in sorted(skipped.items())],
    )


def read_columns(columns: dict[str, Any]) -> SourceCounts:
    """Return the counts that `columns` gave; a ValueError or TypeError if these are not columns of one length."""
    reasons = {name: [(at, why, count) for at, why, count in columns[name]] for name in ("bad", "skipped")}
    counts = SourceCounts(**{**columns, **reasons})
    lists = [counts.unit, *(getattr(counts, name) for name in COUNTS)]
    for one in (counts.tokens, counts.num_documents):
        if list(one) != list(SPLITS):
            raise ValueError(f"its columns have the splits {', '.join(one)}")
        lists += one.values()
    if len({len(one) for one in lists}) > 1:
        raise ValueError("its columns have different lengths")
    return counts


def read_rows(rows: Sequence[dict[str, Any]]) -> SourceCounts:
    """Return the counts of an earlier chunk, which has an object for each source."""
    return SourceCounts(
        **{name: [one[name] for one in rows] for name in ("unit", *COUNTS)},
        tokens={split: [one["tokens"][split] for one in rows] for split in SPLITS},
        num_documents={split: [one["num_documents"][split] for one in rows] for split in SPLITS},
        bad=_list_reasons(one["bad"] for one in rows),
        skipped=_list_reasons(one["skipped"] for one in rows),
    )


def _list_reasons(by_source: Iterable[dict[str, int]]) -> Reasons:
    return [(at, why, count) for at, one in enumerate(by_source) for why, count in sorted(one.items())]


def _add_reasons(reasons: Reasons) -> dict[str, int]:
    added: Counter[str] = Counter()
    for _, why, count in reasons:
        added[why] += count
    return dict(sorted(added.items()))
