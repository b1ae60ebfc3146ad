"""What a loader does about row groups that cannot be read: an error with the first batch that needs one, or fill rows.

With `on_bad=fill` the windows of such a row group come as rows that only fill: window number -1, no target that counts.
Which window comes when is arithmetic, so the order, the state and the other ranks' batches stay as they are.
"""

from __future__ import annotations

import errno
import stat
import warnings
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pipeline.base.wording import counted

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pipeline.loader.row_group import RowBatch, SampleIds
    from pipeline.shards.entries import ShardEntry

REMEDY = (
    "write the data set again, which gives the same bytes, or pass over the damage with loader.on_bad=fill "
    "(ShardLoader(..., on_bad='fill')); stages=[verify] lists all of it"
)
# Errors of this process or of its rights: what is stored may be intact.
OWN_FAULTS = (errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EACCES, errno.EPERM)
MANY_SHARDS = 1 << 10  # above it, opening a data set looks at the first and the last of its files alone
LISTED = 100  # shards that an error names


class DamagedRowGroup(OSError):  # noqa: N818 - what it is, and the message is for the user
    """A row group, or a complete shard, that is missing or not what the manifest says; its argument says which."""

    def __str__(self) -> str:
        return f"{self.args[0]}. To go on, {REMEDY}"


class Damage(NamedTuple):
    """The rows of some batches that could not be read."""

    groups: np.ndarray  # int64 [B], the row group of each of them, numbered through all shards; -1 of a row that was
    errors: dict[int, DamagedRowGroup]  # by row group

    def rows(self, which: slice) -> np.ndarray:
        """Tell which of some rows could not be read, bool [B]."""
        bad_B: np.ndarray = self.groups[which] >= 0
        return bad_B

    def hide(self, samples: SampleIds) -> SampleIds:
        """Return the samples with window number -1 where a row could not be read."""
        return samples._replace(windows=np.where(self.groups >= 0, -1, samples.windows))


class DamageLog:
    """What a loader has met.

    Args:
        on_bad: `raise` or `fill`.

    """

    def __init__(self, on_bad: str) -> None:
        self.on_bad = on_bad
        self.windows = 0  # that came as rows that only fill
        self._named: set[int] = set()

    def note(self, damage: Damage, which: slice) -> None:
        """Raise for a batch with rows that could not be read, or count them, and warn of each row group once."""
        if not (bad_B := damage.rows(which)).any():
            return
        groups = damage.groups[which][bad_B]
        if self.on_bad == "raise":
            error = damage.errors[int(groups[0])]
            raise error from error.__cause__
        self.windows += len(groups)
        for group in dict.fromkeys(groups.tolist()):
            if group not in self._named:
                self._named.add(group)
                warnings.warn(f"{damage.errors[group].args[0]}. Its windows come as rows that only fill", stacklevel=3)


def clear_rows(rows: RowBatch, damage: Damage) -> RowBatch:
    """Return rows whose damaged ones have zeros, and no target that counts."""
    bad_B = damage.groups >= 0
    ids_BT1, bounds_B2 = rows.ids, rows.bounds
    if bounds_B2 is None:
        bounds_B2 = np.zeros((len(ids_BT1), 2), np.int32)
        bounds_B2[:, 1] = ids_BT1.shape[1] - 1
    ids_BT1[bad_B], bounds_B2[bad_B] = 0, 0
    if rows.ends is not None:
        rows.ends[bad_B] = 0
    return rows._replace(bounds=bounds_B2)


def check_files(folder: Path, shards: Sequence[ShardEntry], *, on_bad: str) -> None:
    """Compare the names and sizes of a split's shards with the manifest. No shard is opened.

    So that a start costs the same at any size, of more than `MANY_SHARDS` only the first and the last are looked at;
    the others are missed when they are needed.

    Raises:
        DamagedRowGroup: some are missing or have another size; with `on_bad=fill` that is a warning.

    """
    numbers = range(len(shards)) if len(shards) <= MANY_SHARDS else (0, len(shards) - 1)
    wrong: list[str] = []
    for number in numbers:
        try:
            shard = shards[number]
        except ValueError as error:  # the index is missing or damaged
            wrong.append(str(error))
            break
        try:
            found = (folder / shard.path).stat()
        except (FileNotFoundError, NotADirectoryError):
            wrong.append(f"{shard.path} is missing")
        except OSError:
            continue  # the first read says what is wrong, and tries more than once
        else:
            if not stat.S_ISREG(found.st_mode):
                wrong.append(f"{shard.path} is not a regular file")
            elif found.st_size != shard.bytes:
                wrong.append(f"{shard.path} has {counted(found.st_size, 'byte')}, not {shard.bytes:,}")
    if not wrong:
        return
    more = f"; and {len(wrong) - LISTED:,} more" if len(wrong) > LISTED else ""
    text = f"{folder}: {'; '.join(wrong[:LISTED])}{more}"
    if on_bad == "raise":
        raise DamagedRowGroup(text)
    warnings.warn(f"{text}. Their windows come as rows that only fill", stacklevel=2)
