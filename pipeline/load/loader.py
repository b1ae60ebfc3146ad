"""Shards to batches, in an order that is a pure function of the manifest, the seed and the epoch.

The whole state is one count: the samples of the epoch that all ranks together have received. It counts what the
consumer was handed, not what was read ahead, so a resume is arithmetic: no sample comes twice and none is lost, with
any other world size, batch size, number of threads or memory budget.

    decoding threads      row groups, narrow, into a fixed amount of memory, as the order will need them
    gathering thread      one block ahead: the next positions -> windows -> rows, side by side, still narrow
    the caller            batches: slices of the block, widened to int64

Threads, not processes: decoding and gathering release the GIL, so threads use all cores, start in under a
millisecond, share memory by nature, and leave no process, shared memory or lock file behind. They live as long as an
iteration: `break`, an exception, Ctrl-C or the end of the program stops them.
"""

from __future__ import annotations

import os
import threading
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import closing
from itertools import chain
from math import gcd
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from pipeline.load.batch import Batch, widen
from pipeline.load.device import DeviceBlock
from pipeline.load.held import Gathered, HeldGroups, Need, place_bytes
from pipeline.load.order import Order, default_block, num_batches, rank_positions, resolve_shuffle
from pipeline.load.reader import end_of_text_id, open_split
from pipeline.load.scoring import check_score
from pipeline.load.workers import CONTEXTS, make_parcel, worker_blocks

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping

STATE_FORMAT = 1
MEMORY_BUDGET = 1 << 29  # 512 MiB: what `auto` asks for fits, whatever the windows and the vocabulary
BLOCK_TOKENS, BLOCK_ROWS = 1 << 19, 1 << 13  # a block is gathered at once: 1 MiB as uint16, at most so many windows
THREADS = "stridemill-load"


class Block(NamedTuple):
    """Consecutive batches of one rank, still narrow."""

    gathered: Gathered
    window_ids: np.ndarray  # int64 [B]
    batches: int
    held: HeldGroups | None = None  # in this process


class ShardLoader(IterableDataset[Batch]):
    """Batches of one split of a data set.

    Args:
        path: the data set's folder, or a token store (`<cache>/stores/<id>.json`) whose windows were never written.
        split: `train` or `validation`.
        batch_size: windows per batch of this rank, B.
        shuffle: `none`, `full`, `lanes`, or `auto`, which picks one of the last two by the data set's size.
        seed: of the order.
        lanes: places of the data set that a batch draws from under `lanes`; world sizes must divide it.
        drop_last: drop the last partial global batch; otherwise it is filled with rows whose targets are -100.
        rank, world_size: this process's place; from `torch.distributed` where it is initialised, else 0 of 1.
        score: `new` turns targets that an earlier window has scored into -100, for evaluation with overlap.
        document_ids: add each token's document and its place since the document began to the batches.
        tokenizer: the expected one, as a manifest names it (`name`, `hash`); a data set of another one is refused.
        threads: that decode; the machine's cores, at most 4, when left out.
        memory_budget: bytes of row groups held in memory, at most.
        device: where batches are to be; see `pipeline.load.device`. They are made in memory when left out.
        workers: processes that decode, instead of threads in this one; see `pipeline.load.workers`.
        worker_context: how they are started: `fork`, `spawn`, `forkserver`; torch's default when left out.
        max_length, stride, tail, documents, windows_per_group, windows_per_shard: of a token store's windows; see
            `pipeline.load.reader.open_split`.

    Each iteration yields the batches that are left of the current epoch; the next one begins the next epoch.

    Raises:
        ValueError: no data set, split or order of that description, or one that the memory budget does not allow.

    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        split: str = "train",
        batch_size: int = 8,
        shuffle: str = "auto",
        seed: int = 0,
        lanes: int = 64,
        drop_last: bool = True,
        rank: int | None = None,
        world_size: int | None = None,
        score: str = "all",
        document_ids: bool = False,
        tokenizer: Mapping[str, Any] | None = None,
        threads: int | None = None,
        memory_budget: int = MEMORY_BUDGET,
        device: torch.device | str | None = None,
        workers: int = 0,
        worker_context: str | None = None,
        max_length: int | None = None,
        stride: int | None = None,
        tail: str | None = None,
        documents: str | None = None,
        windows_per_group: int | None = None,
        windows_per_shard: int | None = None,
    ) -> None:
        for name, value in (("batch_size", batch_size), ("threads", threads)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1; got {value}")
        if workers < 0:
            raise ValueError(f"workers must be at least 0; got {workers}")
        if worker_context not in (None, *CONTEXTS):
            raise ValueError(f"worker_context must be one of {', '.join(CONTEXTS)}; got {worker_context!r}")
        self.reader = open_split(
            path,
            split,
            max_length=max_length,
            stride=stride,
            tail=tail,
            documents=documents,
            windows_per_group=windows_per_group,
            windows_per_shard=windows_per_shard,
            tokenizer=tokenizer,
        )
        check_score(score, self.reader)
        self.batch_size = batch_size
        self.drop_last = drop_last
        self.rank, self.world_size = find_place(rank, world_size)
        self.threads = threads or min(4, os.cpu_count() or 1)
        self.score = score
        max_length, groups = self.reader.max_length, self.reader.groups
        kind = resolve_shuffle(shuffle, num_windows=sum(groups), max_length=max_length)
        block = default_block(groups, max_length=max_length)
        self.order = Order(groups=groups, shuffle=kind, seed=seed, lanes=lanes, block=block)
        self.order.check_world_size(self.world_size)
        self.workers, self.worker_context = workers, worker_context
        self.memory_budget = memory_budget
        self.device = None if device is None else torch.device(device)
        self._end_of_text = end_of_text_id(self.reader.tokenizer) if document_ids else None
        self._count_places()
        self._kept: HeldGroups | None = None  # under `full`, from one epoch to the next
        self.epoch = 0
        self.consumed = 0  # samples of this epoch that all ranks together have received

    def __len__(self) -> int:
        """Batches of a whole epoch, equal on all ranks."""
        return self._batches_from(0)

    def __iter__(self) -> Generator[Batch, None, None]:
        """The batches that are left of this epoch.

        Raises:
            OSError: a shard cannot be read; as soon as a thread meets it, though the batches before it may be whole.

        """
        left = self._enter()
        while left:
            moved = yield from self._hand_over(left)
            left = self._enter() if moved else 0

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None}

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch. The one in hand is left where it is: trainers call this before each epoch."""
        if epoch != self.epoch:
            self._begin(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Where the loader stands: small, JSON-able, and valid for any world size and batch size."""
        return {"version": STATE_FORMAT, **self._identity(), "epoch": self.epoch, "consumed": self.consumed}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another loader of the same data and order stood.

        Raises:
            ValueError: the state is of another data set, or of another order; the message names what differs.

        """
        for key, mine in {"version": STATE_FORMAT, **self._identity()}.items():
            if state.get(key) != mine:
                raise ValueError(
                    f"the state has {key}={state.get(key)!r}, this loader has {mine!r}: their orders differ"
                )
        epoch, consumed = state["epoch"], state["consumed"]
        if not (isinstance(epoch, int) and isinstance(consumed, int) and epoch >= 0 <= consumed):
            raise ValueError(f"the state has epoch={epoch!r}, consumed={consumed!r}: whole numbers from 0 are needed")
        self.epoch, self.consumed = epoch, consumed

    def _identity(self) -> dict[str, Any]:
        order = self.order
        identity: dict[str, Any] = {
            "fingerprint": self.reader.fingerprint,
            "split": self.reader.split,
            "shuffle": order.shuffle,
        }
        if order.shuffle != "none":
            identity["seed"] = order.seed
        if order.shuffle == "lanes":
            identity |= {"lanes": order.lanes, "block": order.block}
        return identity

    def _begin(self, epoch: int) -> None:
        if epoch < 0:
            raise ValueError(f"epochs count from 0; got {epoch}")
        self.epoch, self.consumed = epoch, 0

    def _enter(self) -> int:
        """The batches that are left of this epoch; where none is, the next one begins."""
        if not self._batches_from(self.consumed):
            self._begin(self.epoch + 1)
        return self._batches_from(self.consumed)

    def _hand_over(self, left: int) -> Generator[Batch, None, bool]:
        """Yield the next `left` batches. Ends early, with True, where the loader was moved: by a state, or a reader."""
        worker = get_worker_info()
        turn, turns = (worker.id, worker.num_workers) if worker else (0, 1)  # in a plain DataLoader's workers
        first = left
        with closing(self._any_blocks(left)) as blocks:
            for block in blocks:
                make = self._maker(block)
                for at in range(block.batches):
                    if block.held is not None and block.held.error is not None:
                        raise block.held.error
                    left -= 1
                    self.consumed += self.batch_size * self.world_size
                    if not left:  # the end of an epoch is the start of the next
                        self._begin(self.epoch + 1)
                    here = (self.epoch, self.consumed)
                    if (first - left - 1) % turns == turn:
                        yield make(slice(at * self.batch_size, (at + 1) * self.batch_size))
                    if (self.epoch, self.consumed) != here:
                        return True
        return False

    def _maker(self, block: Block) -> Callable[[slice], Batch]:
        """What makes a batch of some rows of a block."""
        window_ids, end_of_text = torch.from_numpy(block.window_ids), self._end_of_text
        if get_worker_info() is not None:
            return lambda rows: make_parcel(block.gathered, rows, window_ids=block.window_ids, end_of_text=end_of_text)
        if self.device is not None:
            on_device = DeviceBlock(block.gathered, self.device)
            return lambda rows: on_device.widen(rows, window_ids=window_ids, end_of_text=end_of_text)
        return lambda rows: widen(block.gathered, rows, window_ids=window_ids, end_of_text=end_of_text)

    def _batches_from(self, consumed: int) -> int:
        left = max(0, len(self.order) - consumed)
        return num_batches(left, batch_size=self.batch_size, world_size=self.world_size, drop_last=self.drop_last)

    # --- blocks: gathered by a thread, one ahead -------------------------------------------------------------------

    def _any_blocks(self, left: int) -> Generator[Block, None, None]:
        if self.workers:
            return worker_blocks(self, self.epoch, self.consumed, left, Block)
        return self.blocks(self.epoch, self.consumed, left)

    def blocks(self, epoch: int, start: int, batches: int) -> Generator[Block, None, None]:
        """The next `batches` batches of this rank from a global position, in blocks that grow from a single batch."""
        keep = self.order.shuffle == "full"
        held = self._kept or HeldGroups(self.reader, places=self._count_places(), keep=keep, score=self.score)
        self._kept = None  # in use: a second iteration has memory of its own
        decoders = ThreadPoolExecutor(self.threads, thread_name_prefix=THREADS)
        gatherer = ThreadPoolExecutor(1, thread_name_prefix=THREADS)
        try:
            held.start(self._needs(epoch, start), decoders)
            blocks = self._gather(held, epoch, start, batches)
            due = gatherer.submit(next, blocks, None)
            while (block := _wait(due, held)) is not None:
                due = gatherer.submit(next, blocks, None)
                yield block
        finally:
            # Not from one of the threads themselves: the collector may run anywhere, and no thread can wait for itself.
            wait = not threading.current_thread().name.startswith(THREADS)
            decoders.shutdown(wait=wait, cancel_futures=True)
            gatherer.shutdown(wait=wait, cancel_futures=True)
            if wait:
                held.stop()
                self._kept = held if keep else None

    def _gather(self, held: HeldGroups, epoch: int, start: int, batches: int) -> Iterator[Block]:
        """The blocks themselves. The order is asked for many positions at once: a call costs as much as 1,000 rows."""
        step, rows = self.batch_size * self.world_size, min(BLOCK_ROWS, BLOCK_TOKENS // self.reader.max_length)
        full, size = max(1, rows // self.batch_size), 1
        windows, asked = np.empty(0, np.int64), 0  # of the batches done .. asked - 1
        done = 0
        while done < batches:
            take = min(size, batches - done)
            if done + take > asked:
                more = min(max(take, 4 * size, BLOCK_ROWS // self.batch_size if size == full else 0), batches - asked)
                positions = rank_positions(
                    start + asked * step,
                    more * self.batch_size,
                    rank=self.rank,
                    world_size=self.world_size,
                    stop=len(self.order),
                )
                windows = np.concatenate([windows, self.order.windows(positions, epoch)])
                asked += more
            count = take * self.batch_size
            here, windows = windows[:count], windows[count:]
            gathered = held.gather(here, passed=start + done * step)
            if len(here) < count:
                gathered = fill(gathered, count - len(here))
                here = np.pad(here, (0, count - len(here)), constant_values=-1)
            yield Block(gathered, here, take, held)
            done, size = done + take, min(2 * size, full)

    def _needs(self, epoch: int, start: int) -> Iterator[Need]:
        shared = gcd(self.world_size, self.order.lanes)
        stretches = self.order.stretches(start, epoch, rank=self.rank % shared, world_size=shared)
        begun, coming = [], None
        for stretch in stretches:
            if stretch.first >= start:
                coming = stretch
                break
            begun.append(stretch)
        # Those that a resume finds begun are decoded in the order in which its first batches need their lanes.
        begun.sort(key=lambda stretch: (stretch.first - start) % self.order.lanes)
        for stretch in chain(begun, [coming] if coming else [], stretches):
            yield Need(stretch.group, stretch.last)

    def _count_places(self) -> int:
        """Row groups to hold at once: what the order needs at any position, and as many again to decode ahead."""
        order, groups = self.order, len(self.reader.groups)
        lanes = order.lanes // gcd(self.world_size, order.lanes) * order.block
        needed = min(groups, {"none": 1, "full": groups, "lanes": lanes}[order.shuffle])
        each = max(1, place_bytes(self.reader))
        if needed * each > self.memory_budget:
            remedy = {"none": "", "full": ", or choose shuffle=lanes", "lanes": ", or fewer lanes"}[order.shuffle]
            raise ValueError(
                f"shuffle={order.shuffle} holds {needed} row groups of {each:,} bytes at once, more than "
                f"loader.memory_budget={self.memory_budget:,}; raise it to {needed * each:,} or more{remedy}"
            )
        rows = max(self.batch_size, min(BLOCK_ROWS, BLOCK_TOKENS // self.reader.max_length))
        in_block = 2 + rows * self.world_size * groups // max(1, len(order))
        wished = needed + max(needed, 2 * self.threads, in_block)
        return max(1, min(groups, wished, self.memory_budget // each))


def find_place(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """This process's rank and the world size: as given, else from `torch.distributed`, else 0 of 1."""
    if (rank is None) != (world_size is None):
        raise ValueError(f"give both rank and world_size, or neither; got rank={rank}, world_size={world_size}")
    if rank is None or world_size is None:
        distributed = torch.distributed
        if distributed.is_available() and distributed.is_initialized():
            return distributed.get_rank(), distributed.get_world_size()
        return 0, 1
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must be from 0 to world_size - 1; got rank={rank}, world_size={world_size}")
    return rank, world_size


def fill(gathered: Gathered, missing: int) -> Gathered:
    """Rows that only fill the last batch, behind the others: no target of them counts."""
    ids_BT1, bounds_B2 = gathered
    if bounds_B2 is None:
        bounds_B2 = np.zeros((len(ids_BT1), 2), np.int32)
        bounds_B2[:, 1] = ids_BT1.shape[1] - 1
    return Gathered(np.pad(ids_BT1, ((0, missing), (0, 0))), np.pad(bounds_B2, ((0, missing), (0, 0))))


def _wait(due: Future[Block | None], held: HeldGroups) -> Block | None:
    try:
        return due.result()
    except (OSError, ValueError, CancelledError) as error:
        if held.error is None or held.error is error:
            raise
        raise held.error from held.error.__cause__  # what a decoding thread met, not what followed from it
