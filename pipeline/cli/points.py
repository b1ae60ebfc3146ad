"""The points of a sweep, read from the files that they leave.

Each point has a record, `<sweep>/<point>/point.json`, from its start on. A finished point has a `summary.json` next to
it. `<sweep>/plan.json` lists the planned points. So the points are known whatever launcher ran them, even after a
failure, Ctrl-C or a killed process: a point without a record never started.
"""

from __future__ import annotations

import json
import shlex
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipeline.base.wording import counted

if TYPE_CHECKING:
    from pathlib import Path

PLAN, RECORD, SUMMARY, TRACEBACK = "plan.json", "point.json", "summary.json", "traceback.txt"
SHOWN_SWEEPS = 5
STATUSES = ("done", "failed", "skipped", "interrupted", "unfinished", "not started")


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One line of a sweep's table. What a point did not reach is None."""

    point: int | None
    overrides: str
    status: str  # of STATUSES; an `unfinished` point started, and its process never recorded an end
    max_length: int | None = None
    stride: int | None = None
    tail: str | None = None
    documents: str | None = None
    overlap: float | None = None  # L/S: how many windows contain a token
    tokens: int | None = None  # of the corpus, in all splits
    split_tokens: str | None = None  # the same, by split
    windows: int | None = None
    delivered: int | None = None  # window tokens: in all windows, each counted as often as it occurs
    bytes: int | None = None  # of all shards
    bytes_per_token: float | None = None  # on disk, for each token of the corpus
    naive_bytes_per_token: float | None = None  # inputs and targets as plain arrays of whole numbers
    text_bytes: int | None = None  # of the corpus
    text_bytes_per_token: float | None = None  # how much text a token holds
    vocab_size: int | None = None
    chunks: int | None = None
    chunks_made: int | None = None  # tokenized by this point; the others were found in the cache
    seconds: float | None = None  # the whole point, which is the sum of the next five
    start_seconds: float | None = None  # all but the stages' work: imports, the vocabulary, to find and hash the input
    tokenize_seconds: float | None = None
    write_seconds: float | None = None
    verify_seconds: float | None = None
    load_seconds: float | None = None  # with the embedding's time
    loader_tokens_per_second: float | None = None  # without it
    error: str | None = None
    kind: str | None = None  # of the error: stride (above max_length), config or data
    folder: str | None = None  # of the point, below the sweep's
    sweep: str | None = None  # its folder, in a report of several
    shards_path: str | None = None  # of the data set, which points may share
    given: dict[str, str] = field(default_factory=dict)  # its overrides, as key and value
    kept: bool = False  # finished by an earlier start of the sweep


def read_points(folder: Path) -> tuple[list[Point], list[str]]:
    """Return the points of a sweep in the order of its plan, and the folders of points that the plan does not have.

    The folder of a single run counts as one point.

    Raises:
        ValueError: the folder is neither one sweep's own nor a run's.

    """
    plan = folder / PLAN
    if not plan.is_file() and (folder / SUMMARY).is_file():
        return [_read_run(folder)], []
    if not plan.is_file():
        found = sorted(str(path.parent) for path in folder.rglob(PLAN))
        more = f" and {len(found) - SHOWN_SWEEPS} more" if len(found) > SHOWN_SWEEPS else ""
        hint = f"choose one of {', '.join(found[:SHOWN_SWEEPS])}{more}" if found else "such a folder has a plan.json"
        raise ValueError(f"sweep.path: {folder} is not the folder of one sweep; {hint}")
    planned: list[list[str]] | None = _read(plan)["points"]
    records = find_records(folder)
    if planned is None:  # the sweeper chose its points while it ran
        records.sort(key=lambda found: found[1]["point"] or 0)
        return [_read_point(path, record, record["point"], folder) for path, record in records], []
    known: dict[tuple[str, ...], list[tuple[Path, dict[str, Any]]]] = {}
    for path, record in records:
        known.setdefault(identify(record["overrides"]), []).append((path, record))
    points = []
    for number, overrides in enumerate(planned):
        same = known.get(identify(overrides), [])
        if same:
            points.append(_read_point(*same.pop(0), number, folder))
        else:
            window = _planned_window(overrides)
            record = {"overrides": overrides, "status": "not started", "window": window}
            points.append(_point(record, point=number))
    return points, sorted(str(path.parent) for same in known.values() for path, _ in same)


def read_command(folder: Path) -> str:
    """Return the command of a sweep, as a shell takes it; empty if its plan does not have it."""
    arguments = _read(folder / PLAN).get("overrides") if (folder / PLAN).is_file() else None
    return shlex.join(["stridemill", "-m", *map(str, arguments)]) if arguments else ""


def find_records(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Return the records below a sweep's folder, ordered by path. Another sweep inside the folder is left out."""
    inner = {path.parent for path in folder.rglob(PLAN)} - {folder}
    paths = sorted(path for path in folder.rglob(RECORD) if not inner & set(path.parents))
    return [(path, _read(path)) for path in paths]


def identify(overrides: list[str]) -> tuple[str, ...]:
    """Return what makes a point the same point in another sweep: its overrides, in any order."""
    return tuple(sorted(overrides))


def count_statuses(points: list[Point]) -> str:
    """Return the points by status: '9 points: 7 done, 2 skipped'."""
    counts = {status: sum(point.status == status for point in points) for status in STATUSES}
    found = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    return f"{counted(len(points), 'point')}: {found}"


def describe_tokenizing(points: list[Point]) -> str:
    """Return how many points tokenized text, and how many found all tokens in the cache."""
    written = [point for point in points if point.chunks is not None]
    makers = sum(bool(point.chunks_made) for point in written)
    found = len(written) - makers
    if not written:
        return "tokenized: no point wrote a data set"
    if not makers:
        return f"tokenized: {'all ' * (found > 1)}{counted(found, 'point')} reused the cache"
    made = counted(sum(point.chunks_made or 0 for point in written), "chunk")
    reused = f"; {counted(found, 'point')} reused the cache" if found else ""
    return f"tokenized: {counted(makers, 'point')} made {made} of tokens{reused}"


def _read(path: Path) -> dict[str, Any]:
    try:
        fields: dict[str, Any] = dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: damaged. Delete it; its point then counts as not started") from error
    return fields


def _planned_window(overrides: list[str]) -> dict[str, int]:
    """Return the max_length and stride of a point without a record, as far as its overrides name them."""
    given = dict(override.partition("=")[::2] for override in overrides)
    names = {key: given.get(f"window.{key}", "") for key in ("max_length", "stride")}
    return {key: int(value) for key, value in names.items() if value.isdecimal() and int(value) > 0}


def _read_point(path: Path, record: dict[str, Any], number: int | None, folder: Path) -> Point:
    summary = path.with_name(SUMMARY)
    reports = _read(summary) if summary.exists() else {}
    try:
        return _point({**reports, **record}, point=number, folder=str(path.parent.relative_to(folder)))
    except (AttributeError, KeyError, TypeError) as error:  # not the files that a point writes
        raise ValueError(f"{path}: damaged. Delete it; its point then counts as not started") from error


def _read_run(folder: Path) -> Point:
    """Return a single run as a point."""
    summary, overrides = _read(folder / SUMMARY), folder / ".hydra" / "overrides.yaml"
    given = list(OmegaConf.load(overrides)) if overrides.is_file() else []
    try:
        window = summary["write"]["manifest"]["windows"] if "write" in summary else {}
        return _point({**summary, "overrides": given, "window": window}, point=summary["point"], folder=".")
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / SUMMARY}: damaged. Leave {folder} out of sweep.path") from error


def find_value(point: Point, key: str, sweep: Path) -> str | None:
    """Return a point's value of a key that its own command line does not have; None if its config is not there."""
    known = {f"window.{name}": getattr(point, name) for name in ("max_length", "stride", "tail", "documents")}
    if known.get(key) is not None:
        return str(known[key])
    config = sweep / (point.folder or ".") / ".hydra" / "config.yaml"
    value = None
    with suppress(OSError, ValueError, OmegaConfBaseException):
        value = OmegaConf.select(OmegaConf.load(config), key)
        value = value.get("name") if OmegaConf.is_dict(value) else value  # of a group its choice
    return None if value is None else str(value)


def split_overrides(overrides: list[str]) -> dict[str, str]:
    """Return overrides as keys and values: `+window.stride=8` becomes `window.stride` and `8`."""
    pairs = (override.partition("=") for override in overrides)
    return {key.lstrip("+"): value for key, _, value in pairs if not key.startswith("hydra.")}


def _point(record: dict[str, Any], **more: Any) -> Point:
    window, write, load = record.get("window") or {}, record.get("write"), record.get("load")
    overrides = record.get("overrides", [])
    length, stride = (window.get(key) if isinstance(window.get(key), int) else None for key in ("max_length", "stride"))
    known: dict[str, Any] = {
        "overrides": " ".join(overrides),
        "given": split_overrides(overrides),
        "status": record["status"] if record.get("status") in STATUSES else "unfinished",
        "max_length": length,
        "stride": stride,
        "tail": window.get("tail"),
        "documents": window.get("documents"),
        "overlap": length / stride if length and stride else None,
        "error": record.get("error"),
        "kind": record.get("kind"),
        "seconds": record.get("seconds"),
        "kept": record.get("kept") is True,
        **more,
    }
    if write:
        splits = write["manifest"]["splits"].values()
        tokens = sum(split["num_tokens"] for split in splits)
        stored = sum(shard["bytes"] for split in splits for shard in split["shards"])
        windows = sum(split["num_windows"] for split in splits)
        item = 2 if write["manifest"]["tokenizer"]["vocab_size"] <= 1 << 16 else 4  # bytes of an ID
        known |= {
            "tokens": tokens,
            "split_tokens": " ".join(str(split["num_tokens"]) for split in splits),
            "windows": windows,
            "delivered": windows * (length or 0),
            "bytes": stored,
            "bytes_per_token": stored / max(1, tokens),
            "naive_bytes_per_token": 2 * item * windows * (length or 0) / max(1, tokens),
            "text_bytes": write["manifest"]["corpus"]["bytes"],
            "text_bytes_per_token": write["manifest"]["corpus"]["bytes"] / max(1, tokens),
            "vocab_size": write["manifest"]["tokenizer"]["vocab_size"],
            "shards_path": write["path"],
            "chunks": write["chunks"],
            "chunks_made": write["chunks_made"],
        }
        if not write["finished_before"]:
            known |= {"tokenize_seconds": write["tokenize_seconds"], "write_seconds": write["write_seconds"]}
    known |= {f"{stage}_seconds": (record.get("stage_seconds") or {}).get(stage) for stage in ("verify", "load")}
    if load:
        known["loader_tokens_per_second"] = load["tokens"] / max(load["load_seconds"], 1e-9)
    if known["seconds"] is not None:
        worked = sum(known.get(f"{name}_seconds") or 0.0 for name in ("tokenize", "write", "verify", "load"))
        known["start_seconds"] = max(0.0, known["seconds"] - worked)
    return Point(**known)
