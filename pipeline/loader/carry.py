"""Where a source stands, carried from one loader to another: a mixture of other sources, or one data set alone.

A source's position is how often each row has drawn it (`pipeline.loader.mixture`): int64 [C], 1 row without lanes. This
says which windows of its epoch have come, whichever loader drew them. A data set alone draws its rows in turn, so its
position is one count, until it goes on from a mixture, whose rows run ahead of one another by a few draws. Then the
draws that the others are ahead of come first (`CarriedOrder`), and after these its order is the usual one.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from dataclasses import dataclass, field, fields
from heapq import merge
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.loader.order import Order, Span
from pipeline.rules import MAX_COUNT, shorten

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import numpy.typing as npt

    from pipeline.base.permutation import Int64


def draws_by_row(count: int, rows: int) -> Int64:
    """Return how often each row has drawn a source that drew its rows in turn: int64 [C].

    >>> draws_by_row(5, 3)
    array([2, 2, 1])
    """
    return -((np.arange(rows) - count) // rows)


def skipped_draws(drawn: Int64) -> Int64:
    """Return the draws that some rows [C] have not made, but others have passed, sorted."""
    rows, row = len(drawn), np.arange(len(drawn))
    last = int(((drawn - 1) * rows + row).max(initial=-1))  # the latest draw that was made
    missing = np.maximum(0, -((row - last) // rows) - drawn)  # [C] draws of each row before it
    of_row = np.repeat(row, missing)
    ahead = np.arange(len(of_row)) - np.repeat(np.cumsum(missing) - missing, missing)
    return np.sort((drawn[of_row] + ahead) * rows + of_row)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CarriedOrder(Order):
    """The order of a data set that goes on from a mixture: first the draws that its rows had not made."""

    drawn: Int64  # [C] by row, in the mixture
    skipped: Int64 = field(init=False, repr=False)  # the draws that come first
    taken: int = field(init=False, repr=False)  # all draws of the mixture: those take the indices from here on

    def __post_init__(self) -> None:
        Order.__post_init__(self)
        object.__setattr__(self, "skipped", skipped_draws(self.drawn))
        object.__setattr__(self, "taken", int(self.drawn.sum()))

    def is_over(self, epoch: int, index: int) -> bool:
        """Tell whether the order is the usual one from an index on."""
        return epoch * len(self) + index >= self.taken + len(self.skipped)

    def since(self, epoch: int, index: int) -> Order:
        """Do as `Order.since`."""
        return Order(**_fields(self)) if self.is_over(epoch, index) else self

    def reaches(self, epoch: int) -> bool:
        """Tell whether an epoch begins after what the mixture has drawn."""
        return epoch * len(self) >= self.taken

    def position(self, epoch: int, index: int) -> Int64:
        """Return how often each row has drawn the data set before an index that is not over: int64 [C]."""
        done = self.skipped[: max(0, epoch * len(self) + index - self.taken)]
        return self.drawn + np.bincount(done % len(self.drawn), minlength=len(self.drawn))

    def windows(self, indices: npt.ArrayLike, epoch: int | Int64) -> Int64:
        """Do as `Order.windows`."""
        draws = np.asarray(indices, dtype=np.int64) + np.int64(epoch) * len(self)
        is_skipped = (draws >= self.taken) & (draws < self.taken + len(self.skipped))
        draws[is_skipped] = self.skipped[draws[is_skipped] - self.taken]
        epochs, found = draws // len(self), np.empty_like(draws)
        for one in np.unique(epochs).tolist():
            found[epochs == one] = Order.windows(self, draws[epochs == one] % len(self), one)
        return found

    def spans(self, start: int, epoch: int, lanes: Iterable[int] | None = None) -> Iterator[Span]:
        """Do as `Order.spans`; what comes first is needed by every rank."""
        usual = Order.spans(self, start, epoch, lanes)
        if self.is_over(epoch, start):
            return usual
        stop = min(len(self), self.taken + len(self.skipped) - epoch * len(self))
        groups = np.unique(self.locate(self.windows(np.arange(start, stop), epoch))[0]).tolist()
        first = (Span(group, 0, self.stored[group], start, stop - 1) for group in groups)
        return merge(first, usual, key=attrgetter("first"))


def carry_order(order: Order, drawn: Int64) -> Order:
    """Return the order of a data set that goes on where a mixture's rows [C] have drawn it this often."""
    if not len(skipped_draws(drawn)):
        return order
    return CarriedOrder(**_fields(order), drawn=drawn)


def _fields(order: Order) -> dict[str, Any]:
    return {one.name: getattr(order, one.name) for one in fields(Order) if one.init}


def encode_draws(drawn: Int64) -> dict[str, Any]:
    """Return draws by row, [C, S], as a small JSON value: rows differ by a few, so they are compressed."""
    least = drawn.min(axis=0)
    more = zlib.compress((drawn - least).astype("<u4").tobytes(), 9)
    return {"least": least.tolist(), "more": base64.b64encode(more).decode("ascii")}


def decode_draws(given: object, *, rows: int, sources: int) -> Int64:
    """Return what `encode_draws` was given.

    Raises:
        ValueError: it is something else.

    """
    try:
        least = np.array([_count(one) for one in given["least"]], np.int64)  # type: ignore[index]
        unpack = zlib.decompressobj()
        more = unpack.decompress(base64.b64decode(given["more"], validate=True), 4 * rows * sources + 1)  # type: ignore[index]
        drawn: Int64 = np.frombuffer(more, "<u4").astype(np.int64).reshape(rows, sources) + least[None, :]
    except (TypeError, LookupError, ValueError, binascii.Error, zlib.error) as error:
        rule = f"must be the draws of {sources} sources in {rows} rows, as state_dict() returns them"
        raise ValueError(f"the state's drawn: {rule}; got {shorten(repr(given), 60)}") from error
    return drawn


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < MAX_COUNT:
        raise ValueError("not a count")
    return value
