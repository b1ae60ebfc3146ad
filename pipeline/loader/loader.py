"""Shards to batches, in an order that is a pure function of the manifest, the seed and the epoch.

The whole state is one count: the samples of the epoch that all ranks together have consumed. It counts what the caller
received, not what was read ahead, so resuming is arithmetic: no sample comes twice and none is lost, with any other
world size, batch size, number of threads or memory budget. Here a loader is made, and knows where it is;
`pipeline.loader.iteration` makes its batches of what `pipeline.loader.prefetch` reads ahead.
"""

from __future__ import annotations

import os
import warnings
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from torch.utils.data import IterableDataset, get_worker_info

from pipeline.base.display import html_table
from pipeline.base.memory import keep_freed_memory
from pipeline.loader.batch import Batch, find_device
from pipeline.loader.damage import DamageLog
from pipeline.loader.disk_cache import open_cache
from pipeline.loader.division import check_step_size, divide, warn_of_shared_lanes
from pipeline.loader.iteration import Iteration
from pipeline.loader.mixture import Mixture
from pipeline.loader.mixture_reader import MixtureReader
from pipeline.loader.order import Order, make_order, resolve_shuffle
from pipeline.loader.prefetch import Prefetcher
from pipeline.loader.progress import Cursor, Epochs, Progress
from pipeline.loader.ranks import check_rank, find_rank, mesh_members
from pipeline.loader.readers import Reader, describe, document_rule, open_split
from pipeline.loader.selection import select_windows
from pipeline.loader.state import read_state, write_state
from pipeline.loader.store_reader import StoreWindows
from pipeline.loader.weights import plan_weights, weights_from
from pipeline.loader.workers import CONTEXTS, choose_context, end_with_parent
from pipeline.rules import MAX_COUNT, check_bool, check_choice, check_range, names_arguments, reject
from pipeline.settings import CACHE_LIMIT, MAX_EPOCH, MAX_WORKERS, MEMORY_BUDGET, LoaderConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping, Sequence
    from typing import TypeVar

    import torch

    from pipeline.loader.ranks import Mesh
    from pipeline.loader.readers import Source
    from pipeline.loader.selection import Windows
    from pipeline.loader.weights import Weights

    Item = TypeVar("Item")

READ_ONLY = {
    "epoch": "go to an epoch with set_epoch(epoch)",
    "consumed": "go to a saved state with load_state_dict(state)",
}


class ShardLoader(IterableDataset[Batch]):
    """Load batches of one split of a data set, or of a mixture of data sets.

        loader = ShardLoader("outputs/shards/python_docs-gpt2-L256-S256", batch_size=8, seed=0)
        for batch in loader:                         # the remaining batches of this epoch
            x, y = batch                             # int64 [8, 256] each
        state = loader.state_dict()                  # small; save it with the model's
        ShardLoader("outputs/shards/...", batch_size=4, rank=1, world_size=2).load_state_dict(state)
        ShardLoader(["shards/web", "shards/code"], weights=[0.7, 0.3])

    Each iteration yields the remaining batches of the current epoch; the iteration after it starts the next epoch. With
    `restart`, each yields the complete epoch, and only `set_epoch` goes to another one: for validation, and for
    trainers that leave an epoch before its end.

    Args:
        path: the data set's folder or URI (`s3://bucket/data-set`), or windows of a token store that were never written
            (`StoreWindows`); or a list of these, the sources of a mixture (`loader/mixture.py`), which share the
            tokenizer and `max_length`.
        weights: for a mixture, each source's share of the samples; left out, its number of windows. Or a schedule,
            `[(0, [0.9, 0.1]), (10000, [0.5, 0.5])]`: from which step on which weights. A step is `step_size`
            windows.
        split: `train` or `validation`.
        batch_size: windows per batch of this rank, B.
        shuffle: `none`, `full`, `lanes`, or `auto`, which picks one of the last two by the data set's size.
        seed: of the order.
        lanes: under `lanes`, how many parts of the data set are read in parallel and interleaved into each batch. Any
            world size can read them; see `pipeline.loader.division`.
        limit: read only so many windows (1000) or this fraction of them (0.1), evenly spread over the data set and the
            same for every seed, epoch and world size. 1 is one window, 1.0 all of them.
        exclude: the numbers of windows to leave out: a list, an array, or a file of them, one number a line or `.npy`.
            A limit is taken of the remaining windows. For a mixture, a list with one entry for each source (None:
            nothing); so may `limit` be, which otherwise holds for each source.
        drop_last: drop the last partial step; otherwise fill it with rows whose targets are -100.
        restart: each iteration starts the epoch again, however the last one ended, as a `DataLoader`'s does.
        step_size: windows of an optimizer step, on all ranks and in all micro-batches together: a multiple of
            `batch_size` times the world size, which it is if left out.
        rank, world_size: of this process; left out, those of `torch.distributed`, and 0 of 1 without it.
        mesh: a process group or a one-dimensional `DeviceMesh`, such as `device_mesh["dp"]`: rank and world size are
            those within it, so ranks that differ only in other dimensions get the same batches.
        score: `new` turns targets that an earlier window has scored into -100, for evaluation with overlap.
        document_ids: batches say where their documents are: `document_ids`, `position_ids`, `cu_seqlens`, `max_seqlen`.
        score_document_starts: False turns targets that are a document's first token into -100.
        tokenizer: the expected one, as a manifest names it (`name`, `hash`); a data set of another one is refused.
        threads: how many decode; left out, one for each core, at most 4.
        memory_budget: bytes of decoded row groups in memory, at most. If all of them take half of it or less, `lanes`
            keeps them, and later epochs decode nothing.
        cache_dir: a folder on a local disk where row groups of object stores and slow shared folders are kept, for
            later epochs, other runs and the other processes of the machine; see `pipeline.loader.disk_cache`.
        cache_limit: bytes of the cache, at most; the oldest row groups make room for new ones.
        device: where batches are made; left out, in main memory.
        workers: processes that decode, instead of threads in this one; see `pipeline.loader.workers`.
        worker_context: how they are started: `fork`, `spawn`, `forkserver`; left out, torch's default, and `spawn` for
            an object store, whose client does not survive a fork.
        on_bad: `raise` with the first batch that needs a damaged row group, or `fill`: its windows come as rows that
            only fill (window number -1, targets -100), so that all ranks go on alike; `bad_windows` counts them.

    Raises:
        OSError: shards are missing or have another size, and `on_bad` is `raise`; in an object store, that is noticed
            by the first batch that needs them.
        ValueError: an argument breaks its rule; there is no such data set or split; one batch of all ranks has more
            windows than the split; the order needs more than the memory budget; or `WORLD_SIZE` says that there are
            several processes, and this one's rank is unknown.

    """

    @names_arguments
    def __init__(
        self,
        path: Source | Sequence[Source],
        *,
        weights: Weights | None = None,
        split: str = "train",
        batch_size: int = 8,
        shuffle: str = "auto",
        seed: int = 0,
        lanes: int = 64,
        limit: float | Sequence[float | None] | None = None,
        exclude: Windows | Sequence[Windows | None] | None = None,
        drop_last: bool = True,
        restart: bool = False,
        step_size: int | None = None,
        rank: int | None = None,
        world_size: int | None = None,
        mesh: Mesh | None = None,
        score: str = "all",
        document_ids: bool = False,
        score_document_starts: bool = True,
        tokenizer: Mapping[str, Any] | None = None,
        threads: int | None = None,
        memory_budget: int = MEMORY_BUDGET,
        cache_dir: str | os.PathLike[str] | None = None,
        cache_limit: int = CACHE_LIMIT,
        device: torch.device | str | None = None,
        workers: int = 0,
        worker_context: str | None = None,
        on_bad: str = "raise",
    ) -> None:
        self.batch_size = check_range("batch_size", batch_size, 1, MAX_COUNT)
        values = LoaderConfig(
            split=split,
            shuffle=shuffle,
            seed=seed,
            lanes=lanes,
            limit=limit,
            exclude=exclude,
            drop_last=drop_last,
            step_size=step_size,
            document_ids=document_ids,
            score_document_starts=score_document_starts,
            threads=threads,
            memory_budget=memory_budget,
            cache_dir=cache_dir,  # type: ignore[arg-type]  # it becomes a text
            cache_limit=cache_limit,
            on_bad=on_bad,
        )
        self.drop_last = values.drop_last
        self.restart = check_bool("restart", restart)
        self.workers = check_range("workers", workers, 0, MAX_WORKERS)
        self.worker_context = (
            None if worker_context is None else check_choice("worker_context", worker_context, CONTEXTS)
        )
        self.device = find_device(device)
        self._rank_is_given = rank is not None or world_size is not None
        self._mesh_members = mesh_members(mesh)
        self.rank, self.world_size = find_rank(rank, world_size, self._mesh_members)
        self.step_size = check_step_size(values.step_size, batch_size=self.batch_size, world_size=self.world_size)
        is_mixture = not isinstance(path, str | os.PathLike | StoreWindows)
        if is_mixture and not hasattr(path, "__iter__"):
            reject("path", "must be a data set's folder or URI, a StoreWindows, or a list of these", path)
        if weights is not None and not is_mixture:
            raise ValueError("weights: belong to a mixture; pass a list of data sets, and one weight for each")
        sources: Sequence[Source] = list(path) if is_mixture else [path]  # type: ignore[arg-type,list-item]
        cache = open_cache(values.cache_dir, values.cache_limit)
        opened = partial(
            open_split, split=values.split, score=score, tokenizer=tokenizer, on_bad=values.on_bad, cache=cache
        )
        readers = [opened(one) for one in sources]
        self.reader: Reader = MixtureReader(readers) if is_mixture else readers[0]
        self.worker_context = choose_context(self.worker_context, self.reader)
        self.threads = values.threads or min(4, os.cpu_count() or 1)
        kind = resolve_shuffle(
            values.shuffle, num_windows=self.reader.groups.num_windows, max_length=self.reader.max_length
        )
        selections = select_windows(
            [reader.groups.num_windows for reader in readers],
            split=values.split,
            limit=values.limit,
            exclude=values.exclude,
            is_mixture=is_mixture,
        )
        orders = [
            make_order(reader, shuffle=kind, seed=values.seed, lanes=values.lanes, selection=selection)
            for reader, selection in zip(readers, selections, strict=True)
        ]
        order: Order | Mixture = orders[0]
        if is_mixture:
            shares = [len(one) for one in orders] if weights is None else weights
            order = Mixture(orders=orders, weights=plan_weights(shares, sources=len(orders), step_size=self.step_size))
        self._epochs = Epochs(self.batch_size, self.world_size, self.step_size, self.drop_last, self.restart)
        shape = {"world_size": self.world_size, "batch_size": self.batch_size, "lanes": orders[0].num_rows}
        if self.rank == 0:
            warn_of_shared_lanes(**shape)
        self._prefetcher = Prefetcher(
            self.reader,
            order=order,
            part=divide(rank=self.rank, **shape),
            threads=self.threads,
            memory_budget=values.memory_budget,
            documents=document_rule(self.reader, ids=values.document_ids, score_starts=values.score_document_starts),
        )
        self._start = order
        self._damage = DamageLog(values.on_bad)
        self._cursor = Cursor(Progress(0, 0, order))
        self._epochs.check_size(order, self.reader.split, is_selection=any(selections))

    def __setattr__(self, name: str, value: object) -> None:
        is_ours = name in self.__dict__ or isinstance(getattr(type(self), name, None), property)
        if is_ours and not name.startswith("_") and "_cursor" in self.__dict__:
            way = READ_ONLY.get(name, f"make a new ShardLoader with another {name}, and load this one's state into it")
            raise AttributeError(f"ShardLoader.{name} is read-only, since batches depend on it; {way}")
        super().__setattr__(name, value)

    def __getstate__(self) -> dict[str, Any]:
        self._check_rank()
        return {**self.__dict__, "_cursor": Cursor(self._cursor.progress)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._check_rank()

    def __repr__(self) -> str:
        return f"ShardLoader({'; '.join(self._description().values())})"

    def _repr_html_(self) -> str:
        return html_table("ShardLoader", self._description())

    def __len__(self) -> int:
        """Return the batches of a complete epoch, equal on all ranks; of a mixture, those of the current epoch."""
        return self._epochs.count_batches(self._cursor.progress)

    def __getitem__(self, index: object) -> NoReturn:
        raise TypeError(
            f"a ShardLoader has no window {index!r}: iterate over it, or use WindowDataset(path)[{index!r}]"
        )

    def __iter__(self) -> Generator[Batch, None, None]:  # noqa: PYI058 - callers may close it
        """Yield the remaining batches of this epoch.

        Raises:
            OSError: a row group of this batch cannot be read, and `on_bad` is `raise`; the batch does not count.

        """
        return self.iterate(lambda batch: batch)

    def iterate(self, convert: Callable[[Batch], Item]) -> Generator[Item, None, None]:
        """Yield `convert(batch)` for the remaining batches of this epoch. A batch counts once it is converted."""
        self._check_rank()
        if get_worker_info() is not None:
            end_with_parent()
        keep_freed_memory()
        iteration = Iteration(
            prefetcher=self._prefetcher,
            cursor=self._cursor,
            epochs=self._epochs,
            damage=self._damage,
            device=self.device,
            workers=self.workers,
            worker_context=self.worker_context,
        )
        yield from iteration.run(convert)

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch; the current one stays where it is. Trainers call this before each epoch.

        With `restart`, iterations that have started stay in their epoch.
        """
        epoch = check_range("epoch", epoch, 0, MAX_EPOCH)
        progress = self._cursor.progress
        if epoch != progress.epoch:
            order = progress.order if progress.order.reaches(epoch) else self._start
            self._move(epoch, self._epochs.first(order, epoch), order)

    def set_weights(self, weights: Weights) -> None:
        """Draw from the sources of a mixture with other weights from here on; what was drawn before stays the same.

        A schedule (see `weights` of the loader) is followed from this step on. A list of numbers ends the schedule that
        was followed until now. Call it on every rank at the same step, so that all see the same sequence.
        """
        progress, mixture = self._cursor.progress, self._mixture()
        entries = plan_weights(weights, sources=len(mixture.orders), step_size=self.step_size)
        order = mixture.change(weights_from(entries, progress.consumed), keep_past=self.restart)
        self._cursor.progress = progress._replace(order=order, moves=progress.moves + 1)

    def skip(self, n: int) -> None:
        """Pass over the next `n` batches of all ranks as if they had been read, also beyond the end of the epoch.

        Nothing is decoded. Call it on every rank at the same step, between two iterations or within one, which ends if
        the epoch does. With `restart`, the next iteration yields the rest, as after `load_state_dict`.

        Raises:
            ValueError: `n` is not a whole number from 0.

        """
        self._cursor.progress = self._epochs.skip(self._cursor.progress, check_range("skip", n, 0, MAX_COUNT))

    @property
    def epoch(self) -> int:
        """The epoch of the next batch."""
        return self._cursor.progress.epoch

    @property
    def consumed(self) -> int:
        """Samples of this epoch that all ranks together have received; in a mixture, of all epochs."""
        return self._cursor.progress.consumed

    @property
    def bad_windows(self) -> int:
        """How many windows of damaged row groups this loader has yielded as rows that only fill (`on_bad`)."""
        return self._damage.windows

    @property
    def order(self) -> Order | Mixture:
        """The sample order: which window comes at each index of each epoch."""
        return self._cursor.progress.order

    @property
    def source_samples(self) -> list[int]:
        """How many samples of each source of a mixture all ranks together have received, in all epochs."""
        return [int(count) for count in self._mixture().draws(self.consumed)]

    @property
    def source_epochs(self) -> list[int]:
        """The epoch that each source of a mixture is in: how many times it was drawn completely."""
        orders = self._mixture().orders
        return [samples // len(order) for samples, order in zip(self.source_samples, orders, strict=True)]

    def state_dict(self) -> dict[str, Any]:
        """Return where the loader is: small, JSON-able, and valid for any world size and batch size.

        Raises:
            ValueError: it was called in a `DataLoader`'s worker, which does not know how many batches were received.

        """
        if get_worker_info() is not None:
            raise ValueError(
                "a ShardLoader in a DataLoader's worker has no state to save; give the DataLoader num_workers=0, and "
                "let the loader start the processes: ShardLoader(..., workers=2)"
            )
        order = self.order
        epoch, consumed = self._epochs.saved(self._cursor.progress)
        kept = order.since(epoch, order.first(epoch) if self.restart else consumed)
        return write_state(epoch, consumed, kept, self.reader)

    def metrics(self) -> dict[str, float]:
        """Return counters for a trainer's log, since this loader was made. A copy of it counts on its own.

        `seconds_waited` for batches; `bytes_decoded` and `row_groups_decoded`, by this rank and its workers;
        `row_groups_cached` now; `samples` that all ranks together have received in all epochs; of a mixture also
        `source_samples/0`, `source_samples/1`, ..., by the sources' numbers.
        """
        epoch, consumed, order = self._cursor.progress[:3]
        if isinstance(order, Mixture):
            return self._prefetcher.counters.read(consumed, sources=self.source_samples)
        return self._prefetcher.counters.read(epoch * len(order) + consumed)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume where another loader of the same data and order stopped. A mixture takes its weights from the state.

        If fewer windows of the epoch remain than a batch of all ranks has, and `drop_last` is set, the next epoch
        starts. With `restart`, the next iteration yields the rest of the epoch, and those after it complete ones.

        Raises:
            ValueError: the state is of another data set or order, or damaged; the message names what differs. The
                loader stays as it was.

        """
        epoch, consumed, order, note = read_state(state, self._start, self.reader)
        if note and self.rank == 0:
            warnings.warn(note, stacklevel=2)
        if not self._epochs.batches_after(Progress(epoch, consumed, order)):
            epoch, consumed = order.next_epoch(epoch, consumed)
        self._move(epoch, consumed, order, is_resume=self.restart)

    def _description(self) -> dict[str, str]:
        epoch, consumed, order = self._cursor.progress[:3]
        seed = "" if order.shuffle == "none" else f", seed {order.seed}"
        of_all = "" if isinstance(order, Mixture) else f" of {len(order):,}"
        return {
            "data": describe(self.reader),
            "order": f"shuffle {order.shuffle}{seed}",
            "batches": f"batch_size {self.batch_size}, rank {self.rank} of {self.world_size}",
            "progress": f"epoch {epoch}, {consumed:,}{of_all} samples consumed",
        }

    def _check_rank(self) -> None:
        """Refuse to be read by a process of another rank: it may have got one since, or this may be a copy."""
        if not self._rank_is_given:
            check_rank(self.rank, self.world_size, self._mesh_members)

    def _mixture(self) -> Mixture:
        if isinstance(self.order, Mixture):
            return self.order
        raise ValueError("this loader has one data set: weights and sources belong to a mixture")

    def _move(self, epoch: int, consumed: int, order: Order | Mixture, *, is_resume: bool = False) -> None:
        self._cursor.progress = Progress(epoch, consumed, order, self._cursor.progress.moves + 1, is_resume=is_resume)
