"""Shards to batches, in an order that is a pure function of the manifest, the seed and the epoch.

The whole state is one count: the samples of the epoch that all ranks together have received. It counts what the
consumer was handed, not what was read ahead, so a resume is arithmetic: no sample comes twice and none is lost, with
any other world size, batch size, number of threads or memory budget. `pipeline.loader.prefetch` reads ahead; here its
blocks are cut into batches and widened to int64.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import closing
from operator import index
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import IterableDataset, get_worker_info

from pipeline.base.memory import keep_freed_memory
from pipeline.loader.batch import Batch, DeviceBlock, Int64Block
from pipeline.loader.mixture import Mixture
from pipeline.loader.order import Order, default_block, num_batches, resolve_shuffle
from pipeline.loader.prefetch import Prefetcher, PrefetchUnit
from pipeline.loader.readers import MixtureReader, Reader, StoreWindows, end_of_text_id, open_split
from pipeline.loader.workers import CONTEXTS, make_parcel, worker_blocks
from pipeline.settings import MEMORY_BUDGET

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from pipeline.loader.order import Shuffle
    from pipeline.loader.readers import Source

STATE_FORMAT = 1


class ShardLoader(IterableDataset[Batch]):
    """Batches of one split of a data set.

    Args:
        path: the data set's folder, or windows of a token store that were never written (`StoreWindows`); or a list of
            such, the sources of a mixture (`loader/mixture.py`): of one tokenizer and one `max_length`.
        weights: of a mix, one for each source: what part of the samples it gives. Left out, its number of windows.
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
        memory_budget: bytes of row groups held in memory, at most. Where all fit half of it, `lanes` keeps them, and
            later epochs decode nothing.
        device: where batches are to be; see `pipeline.loader.batch`. They are made in memory when left out.
        workers: processes that decode, instead of threads in this one; see `pipeline.loader.workers`.
        worker_context: how they are started: `fork`, `spawn`, `forkserver`; torch's default when left out.

    Each iteration yields the batches that are left of the current epoch; the next one begins the next epoch.

    Raises:
        ValueError: no data set, split or order of that description, or one that the memory budget does not allow.

    """

    def __init__(
        self,
        path: Source | Sequence[Source],
        *,
        weights: Sequence[float] | None = None,
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
    ) -> None:
        for name, value in (("batch_size", batch_size), ("threads", threads)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1; got {value}")
        batch_size, seed, lanes = index(batch_size), index(seed), index(lanes)  # numpy's are no JSON
        if workers < 0:
            raise ValueError(f"workers must be at least 0; got {workers}")
        if worker_context not in (None, *CONTEXTS):
            raise ValueError(f"worker_context must be one of {', '.join(CONTEXTS)}; got {worker_context!r}")
        is_mix = not isinstance(path, str | os.PathLike | StoreWindows)
        sources: Sequence[Source] = path if is_mix else [path]  # type: ignore[assignment,list-item]
        readers = [open_split(one, split, score=score, tokenizer=tokenizer) for one in sources]
        if weights is not None and not is_mix:
            raise ValueError("weights belong to a mix: give a list of data sets, and one weight for each")
        self.reader: Reader = MixtureReader(readers) if is_mix else readers[0]
        self.batch_size = batch_size
        self.drop_last = drop_last
        self.rank, self.world_size = find_rank(rank, world_size)
        self.threads = threads or min(4, os.cpu_count() or 1)
        self.workers, self.worker_context = workers, worker_context
        self.device = None if device is None else torch.device(device)
        self._end_of_text = end_of_text_id(self.reader) if document_ids else None
        kind = resolve_shuffle(shuffle, num_windows=sum(self.reader.groups), max_length=self.reader.max_length)
        orders = [make_order(reader, shuffle=kind, seed=seed, lanes=lanes) for reader in readers]
        self.order: Order | Mixture = orders[0]
        if is_mix:
            given = [len(order) for order in orders] if weights is None else plain_numbers(weights)
            self.order = Mixture(orders=orders, weights=[(0, tuple(given))])
        self.order.check_world_size(self.world_size)
        self._blocks = Prefetcher(
            self.reader,
            self.order,
            batch_size=batch_size,
            rank=self.rank,
            world_size=self.world_size,
            threads=self.threads,
            memory_budget=memory_budget,
        )
        self._moves = 0  # how often a caller has set the place
        self.epoch = 0
        self.consumed = 0  # samples of this epoch that all ranks together have received; of a mix, of all epochs

    def __len__(self) -> int:
        """Batches of a whole epoch, equal on all ranks. In a mix a batch may lie across two: of the one in hand."""
        start, step = self.order.first(self.epoch), self.batch_size * self.world_size
        return self._batches_from(-(-start // step) * step)

    def __iter__(self) -> Generator[Batch, None, None]:
        """The batches that are left of this epoch.

        Raises:
            OSError: a shard cannot be read; as soon as a thread meets it, though the batches before it may be whole.
            ValueError: a whole epoch has fewer windows than one batch of all ranks, and `drop_last` is set.

        """
        is_copy = get_worker_info() is not None  # in a plain DataLoader's worker
        begin = (self.epoch, self.consumed)
        keep_freed_memory()
        left = self._enter()
        if not left:
            raise ValueError(
                f"the {self.reader.split} split has {len(self.order)} windows, fewer than a batch of {self.batch_size} "
                f"on each of {self.world_size} ranks; lower batch_size, or set drop_last=false"
            )
        try:
            here = (self._moves, self.epoch)
            while left and (yield from self._hand_over(left)):
                if self._moves == here[0] and self.epoch != here[1]:
                    break  # another iteration of this loader has come to the end of the epoch
                left = self._enter()
                here = (self._moves, self.epoch)
        finally:
            if is_copy:  # each read another number of batches ahead, so all go back to where they agree
                self.epoch, self.consumed = begin

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch. The one in hand is left where it is: trainers call this before each epoch."""
        if epoch != self.epoch:
            self._begin(epoch)
            self._moves += 1

    def set_weights(self, weights: Sequence[float]) -> None:
        """Draw from the sources of a mix by other weights from here on. What was drawn before stays as it was.

        On every rank at the same step: each must see the same sequence.
        """
        self._go_on_with(self._mix().change(self.consumed, plain_numbers(weights)))
        self._moves += 1

    @property
    def source_samples(self) -> list[int]:
        """How many samples of each source of a mix all ranks together have received, in all epochs."""
        return [int(count) for count in self._mix().draws(self.consumed)]

    @property
    def source_epochs(self) -> list[int]:
        """The epoch that each source of a mix is in: how often it was drawn to its end."""
        return [samples // len(order) for samples, order in zip(self.source_samples, self._mix().orders, strict=True)]

    def state_dict(self) -> dict[str, Any]:
        """Where the loader stands: small, JSON-able, and valid for any world size and batch size.

        Raises:
            ValueError: asked in a `DataLoader`'s worker, whose own position says nothing of the batches handed over.

        """
        if get_worker_info() is not None:
            raise ValueError(
                "a ShardLoader in a DataLoader's worker has no state to save; give the DataLoader num_workers=0, and "
                "let the loader start the processes: ShardLoader(..., workers=2)"
            )
        state = {"version": STATE_FORMAT, **self._identity(), "epoch": self.epoch, "consumed": self.consumed}
        if isinstance(self.order, Mixture):
            state["weights"] = [[start, list(weights)] for start, weights in self.order.weights]
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another loader of the same data and order stood. The weights of a mix are those of the state.

        Where less is left of the epoch than this loader's batch on all ranks, and `drop_last` is set, it stands at the
        next one.

        Raises:
            ValueError: the state is of another data set or order, or damaged; the message names what differs.

        """
        if not isinstance(state, Mapping):
            raise ValueError(f"a state is the dict that state_dict() gives; got {state!r}")  # noqa: TRY004 - as all here
        if state.get("version") != STATE_FORMAT:
            raise ValueError(
                f"the state has version={state.get('version')!r}, and this release reads version {STATE_FORMAT}: "
                "go on with the release that saved it"
            )
        for key, mine in self._identity().items():
            if state.get(key) != mine:
                raise ValueError(
                    f"the state has {key}={state.get(key)!r}, this loader has {mine!r}: their orders differ"
                )
        epoch, consumed = state.get("epoch"), state.get("consumed")
        if not (isinstance(epoch, int) and isinstance(consumed, int) and epoch >= 0 and consumed >= 0):
            raise ValueError(f"the state has epoch={epoch!r}, consumed={consumed!r}: whole numbers from 0 are needed")
        order = self.order
        if isinstance(order, Mixture):
            if epoch != order.next_epoch(epoch, consumed)[0]:
                raise ValueError(
                    f"the state has epoch={epoch} and consumed={consumed}, of epochs of {len(order)} samples"
                )
            order = Mixture(orders=order.orders, weights=weights_of(state))
        elif consumed > len(order):
            raise ValueError(f"the state has consumed={consumed} samples of an epoch that has {len(order)}")
        self._go_on_with(order)
        self.epoch, self.consumed = epoch, consumed
        self._moves += 1
        self._enter()

    def _identity(self) -> dict[str, Any]:
        order = self.order
        identity: dict[str, Any] = {
            "fingerprint": self.reader.fingerprint,
            "split": self.reader.split,
            "shuffle": order.shuffle,
        }
        if order.shuffle != "none" or isinstance(order, Mixture):
            identity["seed"] = order.seed
        if order.shuffle == "lanes":
            blocks = [one.block for one in order.orders] if isinstance(order, Mixture) else order.block
            identity |= {"lanes": order.lanes, "block": blocks}
        return identity

    def _mix(self) -> Mixture:
        if isinstance(self.order, Mixture):
            return self.order
        raise ValueError("this loader has one data set: weights and sources belong to a mix")

    def _go_on_with(self, order: Order | Mixture) -> None:
        self.order = self._blocks.order = order

    def _begin(self, epoch: int) -> None:
        if epoch < 0:
            raise ValueError(f"epochs count from 0; got {epoch}")
        self.epoch, self.consumed = index(epoch), self.order.first(index(epoch))

    def _enter(self) -> int:
        """The batches that are left of this epoch; where none is, the next one begins, if it has any."""
        if not self._batches_from(self.consumed):
            here = self.epoch, self.consumed
            self.epoch, self.consumed = self.order.next_epoch(*here)
            if not self._batches_from(self.consumed):
                self.epoch, self.consumed = here
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
                    mine = (first - left) % turns == turn
                    # Made before it counts: what is interrupted here was not received.
                    batch = make(slice(at * self.batch_size, (at + 1) * self.batch_size)) if mine else None
                    left -= 1
                    place = (self.epoch, self.consumed + self.batch_size * self.world_size)
                    if not left:  # the end of an epoch is the start of the next
                        place = self.order.next_epoch(*place)
                    self.epoch, self.consumed = place
                    here = (*place, self.order)
                    if batch is not None:
                        yield batch
                    if (self.epoch, self.consumed, self.order) != here:
                        return True
        return False

    def _maker(self, block: PrefetchUnit) -> Callable[[slice], Batch]:
        """What makes a batch of some rows of a block."""
        gathered, names, end_of_text = block.gathered, self.reader.name_windows(block.window_ids), self._end_of_text
        if get_worker_info() is not None:
            return lambda rows: make_parcel(gathered, rows, names=names, end_of_text=end_of_text)
        if self.device is not None:
            on_device = DeviceBlock(gathered, self.device)
            return lambda rows: on_device.to_int64(rows, names=names, end_of_text=end_of_text)
        return Int64Block(gathered, names=names, end_of_text=end_of_text, batch_size=self.batch_size).batch

    def _batches_from(self, consumed: int) -> int:
        left = max(0, self.order.stop(self.epoch) - consumed)
        drop_last = self.drop_last and not self.order.endless
        return num_batches(left, batch_size=self.batch_size, world_size=self.world_size, drop_last=drop_last)

    def _any_blocks(self, left: int) -> Generator[PrefetchUnit, None, None]:
        if self.workers and get_worker_info() is None:  # a worker may start no processes of its own
            return worker_blocks(
                self._blocks,
                self.epoch,
                self.consumed,
                left,
                workers=self.workers,
                context=self.worker_context,
            )
        return self._blocks.read(self.epoch, self.consumed, left)


def make_order(reader: Reader, *, shuffle: Shuffle, seed: int, lanes: int) -> Order:
    """The order of one data set's windows."""
    block = default_block(reader.groups, max_length=reader.max_length)
    return Order(groups=reader.groups, shuffle=shuffle, seed=seed, lanes=lanes, block=block)


def plain_numbers(weights: Sequence[float]) -> list[float]:
    """Weights as Python's own numbers: those of numpy and torch are no JSON."""
    return [weight.item() if hasattr(weight, "item") else weight for weight in weights]


def weights_of(state: Mapping[str, Any]) -> list[tuple[int, tuple[float, ...]]]:
    """The weights in the state of a mix.

    Raises:
        ValueError: there are none, or they do not begin at 0 and rise.

    """
    try:
        weights = [(index(start), tuple(one)) for start, one in state["weights"]]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"the state of a mix needs weights, [[position, [weight, ...]], ...]: {error!r}") from error
    starts = [start for start, _ in weights]
    if not starts or starts[0] != 0 or starts != sorted(set(starts)):
        raise ValueError(f"the state's weights must begin at position 0 and rise; they begin at {starts}")
    return weights


def find_rank(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """This process's rank and the world size: as given, else from `torch.distributed`, else 0 of 1."""
    if (rank is None) != (world_size is None):
        raise ValueError(f"give both rank and world_size, or neither; got rank={rank}, world_size={world_size}")
    if rank is None or world_size is None:
        distributed = torch.distributed
        if distributed.is_available() and distributed.is_initialized():
            return distributed.get_rank(), distributed.get_world_size()
        return 0, 1
    rank, world_size = index(rank), index(world_size)
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must be from 0 to world_size - 1; got rank={rank}, world_size={world_size}")
    return rank, world_size
