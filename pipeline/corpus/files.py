"""Find the files of a corpus: paths, folders and globs, in a stable order.

A file's name is relative to the folder that was given, or to the part of a glob before its first wildcard; of several
paths, to what they have in common. So it changes neither when another file is added or removed, nor when the folder
is moved.

A folder's other files are passed over and counted: those with other endings, and those whose name, or a folder's above
them, starts with a dot. A file that is named by itself or by a glob is never passed over.
"""

from __future__ import annotations

import glob
import os
import re
import stat
from collections import defaultdict, deque
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from pipeline.base.atomic import part_of, remove_part, write_text
from pipeline.base.paths import allow_read_only, expand_user
from pipeline.corpus.compression import SUFFIXES

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterator, Sequence

    from pipeline.corpus.opened import Status

TEXT_SUFFIXES = (".txt", ".md", ".rst")
JSONL_SUFFIXES = (".jsonl", ".ndjson", ".json")
PARQUET_SUFFIXES = (".parquet",)
MAX_KINDS = 20  # kinds of files passed over that are told apart; the others count as one

CACHE_TAG = "CACHEDIR.TAG"
CACHE_SIGNATURE = b"Signature: 8a477f597d28d172789f06886806bc55"  # https://bford.info/cachedir/: backups skip it too
# The folders that stridemill writes, each by what a file in it starts with or contains.
OWN_MARKS = {
    "manifest.json": re.compile(rb'\A\{\s*"fingerprint": "[0-9a-f]{64}",\s*"tokenizer": \{'),  # a data set
    ".writing": re.compile(rb""),  # a data set that is being written: it has this folder
    CACHE_TAG: re.compile(rb"\A" + CACHE_SIGNATURE),  # a cache
    ".hydra/hydra.yaml": re.compile(rb"name: stridemill"),  # a run
    "multirun.yaml": re.compile(rb"name: stridemill"),  # a sweep
}
OWN_NAMES = {name.split("/")[0] for name in OWN_MARKS}
MARK_BYTES = 1 << 14


class PassedOver(NamedTuple):
    """The files of one kind that a folder has and a corpus does not take."""

    files: int
    bytes: int
    example: str  # one of their names


class FoundFile(NamedTuple):
    """A file of a corpus."""

    path: str
    name: str
    status: os.stat_result | Status  # when it was found


class FoundFiles(NamedTuple):
    """The files of a corpus."""

    files: list[FoundFile]  # each once, ordered by name
    passed_over: dict[str, PassedOver]  # by kind: an ending in small letters, `hidden`, `no ending` or `other`


def find_files(
    paths: Sequence[str],
    suffixes: tuple[str, ...],
    *,
    packed: bool = True,
    is_meant: Callable[[str], bool] = lambda _: True,
) -> FoundFiles:
    """Return the files that paths, folders and globs name, and count those that are passed over.

    A folder is searched at any depth for files with one of the `suffixes` in small or capital letters, followed by
    that of a compression if `packed`; links are followed. Files with `.json` in such a name that are not `is_meant` are
    passed over, too. Folders that stridemill wrote are skipped without being counted.

    Raises:
        ValueError: one of `paths` does not exist, or is a folder without a file of the `suffixes`; a folder cannot be
            read; or something with the name of such a file is not a file.

    """
    endings = list_endings(suffixes, packed=packed)
    roots: list[str] = []
    found: list[str] = []
    others: dict[str, list[str]] = defaultdict(list)
    links: set[str] = set()  # of the files found
    can_repeat = len(paths) > 1
    for path in paths:
        location = os.path.abspath(expand_user(path))  # noqa: PTH100 - keeps links, which give files their names
        mode = _mode(path, location)
        if mode and stat.S_ISDIR(mode):
            root = location
            kinds: dict[str, list[str]] = defaultdict(list)
            matches = []
            for entry, is_hidden in _walk(location):
                kind = "hidden" if is_hidden else name_kind(entry.name, entry.path, endings, is_meant)
                if kind:
                    kinds[kind].append(entry.path)
                else:
                    matches.append(entry.path)
                    if entry.is_symlink():
                        links.add(entry.path)
            if not matches:
                counts = {kind: len(files) for kind, files in kinds.items()}
                refuse_without_files(path, suffixes, counts, packed=packed)
            for kind, files in kinds.items():
                others[kind] += files
        elif mode:
            root, matches = os.path.split(location)[0], [location]
            links.update(filter(os.path.islink, matches))
        else:
            root, can_repeat = _fixed_part(location), True
            matches = list(_match(location, root))
            if not matches:
                raise ValueError(f"corpus.path={path!r}: no such file or folder, and no file matches it as a glob")
            links.update(filter(os.path.islink, matches))
        roots.append(root)
        found += matches
    shared = os.path.commonpath(roots)
    found.sort()  # all start with `shared`, so this is the order of their names
    start = len(shared.rstrip("/")) + 1
    once = _each_once(found, links) if can_repeat or links else found  # a folder is entered once
    taken = [FoundFile(path, path[start:], _status(path)) for path in once]
    return FoundFiles(taken, _count_passed_over(others, taken, shared))


def list_endings(suffixes: tuple[str, ...], *, packed: bool) -> tuple[str, ...]:
    """Return the endings of names that a folder contributes."""
    return (*suffixes, *(suffix + packing for suffix in suffixes for packing in SUFFIXES if packed))


def refuse_without_files(path: str, suffixes: tuple[str, ...], counts: dict[str, int], *, packed: bool) -> NoReturn:
    """Raise a ValueError for a folder that contributes nothing; `counts` are its files by kind."""
    plus = f" (or with {', '.join(SUFFIXES)} added)" if packed else ""
    there = ", ".join(f"{counts[kind]} {kind}" for kind in sorted(counts)[:8])
    raise ValueError(
        f"corpus.path={path!r}: the folder has no {', '.join(suffixes)} file{plus}"
        f"{there and f', but {there}'}; use a glob for files with other names"
    )


def found_file(path: Path, name: str) -> FoundFile:
    """Return one file with a name of its own; raises like `find_files`."""
    return FoundFile(str(path), name, _status(str(path)))


def _each_once(paths: Sequence[str], links: Container[str]) -> list[str]:
    """Return the paths of files, of several paths to one file the first."""
    first: dict[str, str] = {}
    folders: dict[str, str] = {}  # with links resolved
    for path in paths:
        if path in links:
            file = os.path.realpath(path)
        else:
            folder, _, name = path.rpartition("/")
            if folder not in folders:
                folders[folder] = os.path.realpath(folder or "/").rstrip("/")
            file = f"{folders[folder]}/{name}"
        first.setdefault(file, path)  # a link's name says how its file is packed, so it is read by that name
    return list(first.values())


def _relative(path: str, folder: str) -> str:
    """Return the path below a folder that it starts with."""
    return path[len(folder.rstrip("/")) + 1 :]


def name_kind(name: str, path: str, endings: tuple[str, ...], is_meant: Callable[[str], bool]) -> str:
    """Return the kind under which a file of that name is passed over; nothing if it is taken."""
    name = name.lower()
    if name.endswith(endings) and (".json" not in name or is_meant(path)):
        return ""
    suffixes = Path(name).suffixes
    return "".join(suffixes[-2:] if suffixes[-1:] and suffixes[-1] in SUFFIXES else suffixes[-1:]) or "no ending"


def _count_passed_over(others: dict[str, list[str]], taken: Sequence[FoundFile], shared: str) -> dict[str, PassedOver]:
    """Count files by kind, each once; a file that another path takes is not passed over."""
    if not others:
        return {}
    seen: set[object] = {(file.status.st_dev, file.status.st_ino) for file in taken}
    rare = set(sorted(others, key=lambda kind: (-len(others[kind]), kind))[MAX_KINDS:])
    counts: dict[str, PassedOver] = {}
    for kind in sorted(others):
        label = "other" if kind in rare else kind
        for file in sorted(others[kind]):
            identity, size = _identity(file)
            if identity in seen:
                continue
            seen.add(identity)
            files, size_before, example = counts.get(label, (0, 0, _relative(file, shared)))
            counts[label] = PassedOver(files + 1, size_before + size, example)
    return counts


def _identity(file: str) -> tuple[object, int]:
    """Return what two paths to one file have in common, and its size."""
    try:
        status = os.stat(file)  # noqa: PTH116 - without a `Path`
    except OSError:  # a link to nothing
        return file, 0
    return (status.st_dev, status.st_ino), status.st_size * stat.S_ISREG(status.st_mode)


def mark_as_cache(cache: Path) -> None:
    """Write the file that marks a folder as a cache, if that is allowed.

    If a process is killed while two threads write it, the second one's temporary file remains: it is removed.
    """
    tag = cache / CACHE_TAG
    with allow_read_only():
        if OWN_MARKS[CACHE_TAG].match(_read_start(tag)):
            remove_part(part_of(tag))
        else:
            write_text(tag, CACHE_SIGNATURE.decode() + "\n# stridemill can write everything in this folder again\n")


def is_own_output(folder: Path) -> bool:
    """Recognise a data set, a cache, a run or a sweep of stridemill, so that a corpus folder never ingests it."""
    return any((folder / name).exists() and mark.search(_read_start(folder / name)) for name, mark in OWN_MARKS.items())


def _read_start(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MARK_BYTES)
    except OSError:
        return b""


def _mode(path: str, location: str) -> int | None:
    """Return the mode of what is at a path, or None if nothing is."""
    try:
        return Path(location).stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ValueError(f"corpus.path={path!r}: cannot be read: {error.strerror}") from error


def _status(path: str) -> os.stat_result:
    """Return a file's status; raise a ValueError if it is not a file that can be read."""
    try:
        status = os.stat(path)  # noqa: PTH116 - without a `Path`
    except OSError as error:
        what = "is a link to nothing" if Path(path).is_symlink() else f"cannot be read: {error.strerror}"
        raise ValueError(f"corpus.path: {path} {what}; mend or remove it") from error
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"corpus.path: {path} is not a regular file but a pipe or a device; remove it")
    return status


def _refuse(error: OSError) -> None:
    raise ValueError(f"corpus.path: the folder {error.filename} cannot be read: {error.strerror}") from error


def _walk(root: str, *, onerror: Callable[[OSError], None] = _refuse) -> Iterator[tuple[os.DirEntry[str], bool]]:
    """Yield every file below a folder, and whether it is hidden; links are followed, and each folder is entered once.

    Hidden folders come last, so that a folder with two paths is entered by the visible one; their errors are ignored.
    """
    entered: set[tuple[int, int]] = set()
    tops, in_hidden = deque([root]), False
    while tops:
        folders = [tops.popleft()]
        while folders:
            folder = folders.pop()
            try:
                status = os.stat(folder)  # noqa: PTH116 - without a `Path`
                with os.scandir(folder) as listed:
                    entries = list(listed)
            except OSError as error:
                onerror(error)
                continue
            identity = status.st_dev, status.st_ino
            has_mark = not OWN_NAMES.isdisjoint(entry.name for entry in entries)
            if identity in entered or (folder != root and has_mark and is_own_output(Path(folder))):
                continue
            entered.add(identity)
            below: list[str] = []
            hidden: list[str] = []
            for entry in entries:
                is_hidden = entry.name.startswith(".")
                if _is_folder(entry):
                    (hidden if is_hidden else below).append(entry.path)
                else:
                    yield entry, in_hidden or is_hidden
            tops += sorted(hidden)
            folders += sorted(below, reverse=True)
        onerror, in_hidden = (lambda _: None), True


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads round and round
        return False


def _match(pattern: str, root: str) -> Iterator[str]:
    """Yield the files that a glob names. As in a shell, hidden names and folders that cannot be read are skipped."""
    if "**" in pattern.split(
        "/"
    ):  # Python's glob enters a folder through each link to it: for ever if two lead upwards
        wanted = tuple(_relative(pattern, root).split("/"))
        paths = (entry.path for entry, _ in _walk(root, onerror=lambda _: None))
        yield from (path for path in paths if fits(tuple(_relative(path, root).split("/")), wanted))
        return
    own: dict[Path, bool] = {}
    for match in map(Path, glob.iglob(pattern, recursive=True)):
        parents = [folder for folder in match.parents if folder.is_relative_to(root) and folder != Path(root)]
        for folder in parents:
            if folder not in own:
                own[folder] = is_own_output(folder)
        if not match.is_dir() and not any(own[folder] for folder in parents):
            yield str(match)


def fits(names: tuple[str, ...], wanted: tuple[str, ...]) -> bool:
    """Tell whether a path matches a glob, part by part; `**` matches any number of parts."""
    if not wanted or not names:
        return not names and set(wanted) <= {"**"}
    is_hidden = names[0].startswith(".") and not wanted[0].startswith(".")
    if wanted[0] == "**":
        return fits(names, wanted[1:]) or (not is_hidden and fits(names[1:], wanted))
    return not is_hidden and fnmatchcase(names[0], wanted[0]) and fits(names[1:], wanted[1:])


def _fixed_part(pattern: str) -> str:
    """Return the folder in front of a glob's first wildcard."""
    parts = Path(pattern).parts[:-1]
    wild = next((at for at, part in enumerate(parts) if glob.escape(part) != part), len(parts))
    return str(Path(*parts[:wild]))
