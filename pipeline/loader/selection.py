"""A part of a split: the windows that remain without some (`exclude`), and of these a number, evenly spread (`limit`).

The sample order works on the windows that are left, numbered 0 .. M-1; a `Selection` says which stored window each of
them is. By eye, 10 windows, without 2 and 3, at most 4:

    stored      0 1 2 3 4 5 6 7 8 9
    remaining   0 1     2 3 4 5 6 7        R = 8, without the excluded ones
    selected    0       1   2   3          M = 4: number m is remaining window m * R // M

Excluded windows are left out first, so a limit of M windows gives M windows. Seed, epoch and world size play no part.

Memory: 8 bytes for each excluded window. Cost: O(row groups + excluded windows) at the start; then a bisection over the
excluded windows for each index that is asked for.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sized
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from pipeline.base.paths import expand_user
from pipeline.base.wording import counted
from pipeline.rules import MAX_COUNT, reject, shorten

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from pipeline.base.permutation import Int64

Limit: TypeAlias = int | float
Windows: TypeAlias = "str | os.PathLike[str] | Iterable[int]"  # window numbers, or a file of them
SELECTING = ("limit", "exclude")
ENTRIES = "must be a list for a mixture, with one entry for each source"
NUMBERS = "must be window numbers (a list or an array of whole numbers), or a file of them"


@dataclass(frozen=True, slots=True, eq=False)
class Selection:
    """Which stored windows of a split are read."""

    before: Int64  # [E] rising: the remaining windows before each excluded one
    remaining: int  # R: windows without the excluded ones
    size: int  # M: the selected ones of these
    digest: str = ""  # of the excluded windows

    def stored(self, numbers: npt.ArrayLike) -> Int64:
        """Return the stored window of each selected one, by its number [P]: int64 [P]."""
        number = _scale(np.asarray(numbers, np.int64), self.remaining, self.size)
        return number + np.searchsorted(self.before, number, side="right")

    def starts(self, borders: Int64) -> Int64:
        """Return how many selected windows come before each stored one [P], such as a row group's first: int64 [P]."""
        excluded = self.before + np.arange(len(self.before))
        number = borders - np.searchsorted(excluded, borders)
        return -_scale(-number, self.size, self.remaining)  # rounded up: m * R // M < number for this many m

    def identity(self) -> dict[str, Any]:
        """Return what a state says about the selection."""
        named: dict[str, Any] = {"limit": self.size} if self.size < self.remaining else {}
        if len(self.before):
            named["exclude"] = {"windows": len(self.before), "sha256": self.digest}
        return named


def describe_selections(selections: Selection | Sequence[Selection | None] | None) -> dict[str, Any]:
    """Return what a state says about the selection of a data set, or of each source of a mixture."""
    if selections is None or isinstance(selections, Selection):
        return selections.identity() if selections is not None else {}
    named = [one.identity() if one is not None else {} for one in selections]
    return {key: [one.get(key) for one in named] for key in SELECTING if any(key in one for one in named)}


def _scale(numbers: Int64, factor: int, divisor: int) -> Int64:
    """Return numbers [P] * factor // divisor, exactly."""
    if factor == divisor:
        return numbers
    if factor * divisor < 1 << 62:
        return numbers * factor // divisor
    scaled: Int64 = (numbers.astype(object) * factor // divisor).astype(np.int64)  # Python's numbers do not overflow
    return scaled


def select_windows(
    sizes: Sequence[int], *, split: str, limit: object = None, exclude: object = None, is_mixture: bool = False
) -> list[Selection | None]:
    """Return the selection of each source, of these sizes; None where all of it is read.

    Args:
        sizes: the windows of the split, of each source.
        split: its name.
        limit: a number of windows or a fraction of them, as `LoaderConfig` checks it; of a mixture that of each source,
            or a list with one entry for each.
        exclude: window numbers or a file of them; of a mixture a list with one entry for each source.
        is_mixture: whether this is a mixture, which may have a single source.

    Raises:
        ValueError: a value breaks its rule, a window is not in the split, or no window is left.

    """
    limits = [limit] * len(sizes)
    if isinstance(limit, list):
        limits = _per_source("limit", limit, len(sizes), is_mixture=is_mixture)
    excludes: list[Any] = [exclude]
    if is_mixture:
        excludes = [None] * len(sizes) if exclude is None else _per_source("exclude", exclude, len(sizes))
    return [
        _select(size, *values, where=f" of source {number}" if is_mixture else f" of the {split} split")
        for number, (size, *values) in enumerate(zip(sizes, limits, excludes, strict=True))
    ]


def _per_source(key: str, values: object, num_sources: int, *, is_mixture: bool = True) -> list[Any]:
    if not is_mixture:
        reject(key, "must be one value, as this is one data set", values)
    if isinstance(values, str | os.PathLike) or not isinstance(values, Iterable) or not isinstance(values, Sized):
        reject(key, ENTRIES, values)
    if len(values) != num_sources:
        reject(key, f"{ENTRIES}: {num_sources}", f"{len(values)} entries")
    if key == "exclude" and not all(one is None or isinstance(one, Iterable) for one in values):
        reject(key, ENTRIES, values)
    return list(values)


def _select(size: int, limit: Limit | None, exclude: object, *, where: str) -> Selection | None:
    excluded = np.empty(0, np.int64) if exclude is None else np.unique(read_numbers(exclude))
    wrong = excluded[(excluded < 0) | (excluded >= size)]
    if len(wrong):
        raise ValueError(
            f"exclude: window {wrong[0]} is none{where}, which has {counted(size, 'window')}, 0 to {size - 1:,}; "
            "leave it out"
        )
    remaining = size - len(excluded)
    if size and not remaining:
        raise ValueError(f"exclude: leaves none of the {counted(size, 'window')}{where}; exclude fewer")
    left = f"{counted(remaining, 'window')}{where}{' that exclude leaves' if len(excluded) else ''}"
    wanted = remaining if limit is None else round(limit * remaining) if isinstance(limit, float) else limit
    if wanted > remaining:
        reject("limit", f"must be at most the {left}", limit)
    if remaining and not wanted:
        reject("limit", f"must be at least one of the {left}", limit)
    if wanted == size:
        return None
    digest = hashlib.sha256(excluded.astype("<i8").tobytes()).hexdigest()[:16] if len(excluded) else ""
    return Selection(excluded - np.arange(len(excluded)), remaining, wanted, digest)


def read_numbers(source: object) -> Int64:
    """Return window numbers, int64 [E], as they were given or from a file: one number a line, or .npy.

    Raises:
        ValueError: something is no window number; the message names the file and the line.

    """
    if isinstance(source, str | os.PathLike):
        return _read_file(expand_user(os.fspath(source)))
    if not isinstance(source, Iterable):
        reject("exclude", NUMBERS, source)
    try:
        return _as_numbers(np.asarray(source if hasattr(source, "__array__") else list(source)))
    except (TypeError, ValueError):
        reject("exclude", NUMBERS, shorten(repr(source), 60))


def _read_file(path: Path) -> Int64:
    try:
        if path.suffix == ".npy":
            return _as_numbers(np.load(path, allow_pickle=False))
        with path.open(encoding="utf-8") as lines:
            return np.fromiter(_parse_lines(lines), np.int64)
    except OSError as error:
        raise ValueError(f"exclude: {path} cannot be read: {error.strerror or error}") from error
    except (TypeError, ValueError, EOFError) as error:
        raise ValueError(f"exclude: {path} must have one window number a line, or be .npy of them: {error}") from error


def _parse_lines(lines: Iterable[str]) -> Iterator[int]:
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if text and not (text.isascii() and text.isdecimal() and len(text) < 20 and int(text) < MAX_COUNT):
            raise ValueError(f"line {number} is {shorten(text, 40)!r}")
        if text:
            yield int(text)


def _as_numbers(values: np.ndarray) -> Int64:
    if not values.size and values.ndim == 1:
        return np.empty(0, np.int64)
    if values.dtype.kind not in "iu" or values.ndim != 1:
        raise TypeError(f"these are {values.dtype} of shape {list(values.shape)}")
    if values.dtype.kind == "u":  # the largest are refused as no window of the split
        values = np.minimum(values.astype(np.uint64), np.uint64(MAX_COUNT))
    numbers: Int64 = values.astype(np.int64)
    return numbers
