"""Which files a corpus consists of: paths, folders and globs, in a stable order.

A file's name is relative to the folder that was given, or to the part of a glob before its first wildcard; of several
paths, to what these share. So it does not change when another file comes or goes, nor with the place of the folder.
"""

from __future__ import annotations

import glob
import os
import re
import stat
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.base.atomic import part_of, replace_file
from pipeline.base.paths import expand_user
from pipeline.corpus.compression import SUFFIXES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

TEXT_SUFFIXES = (".txt", ".md", ".rst")
JSONL_SUFFIXES = (".jsonl", ".ndjson")
PARQUET_SUFFIXES = (".parquet",)

# stridemill's own output, so that a corpus folder never ingests it
TAG = "CACHEDIR.TAG"
MANIFEST = re.compile(rb'\{\s*"fingerprint": "[0-9a-f]{64}",\s*"tokenizer": \{')
SIGNATURE = b"Signature: 8a477f597d28d172789f06886806bc55"  # https://bford.info/cachedir/: backups know it too


def find_files(paths: Sequence[str], suffixes: tuple[str, ...], *, packed: bool = True) -> list[tuple[Path, str]]:
    """The files that paths, folders and globs name, each once, with their names, in the names' order.

    Of a folder, at any depth, those with one of the `suffixes` in small or capital letters, followed by that of a
    compression if `packed`; links are followed. What this program wrote (`own_folders`) is passed over.

    Raises:
        ValueError: one of `paths` names nothing that is there, or a folder with no file of the `suffixes`; a folder
            cannot be read; or what has the name of such a file is none.

    """
    endings = (*suffixes, *(suffix + packing for suffix in suffixes for packing in SUFFIXES if packed))
    roots, found = [], []
    for path in paths:
        place = Path(os.path.abspath(expand_user(path)))  # noqa: PTH100 - links stay: names come from them
        kind = _kind(path, place)
        if kind and stat.S_ISDIR(kind):
            root = place
            matches = [file for file in _walk(place) if file.name.lower().endswith(endings)]
            if not matches:
                plus = f" (or {', '.join(SUFFIXES)} behind it)" if packed else ""
                raise ValueError(
                    f"corpus.path={path!r}: the folder holds no {', '.join(suffixes)} file{plus}; a glob names others"
                )
        elif kind:
            root, matches = place.parent, [place]
        else:
            root = _fixed_part(place)
            matches = list(_match(place, root))
            if not matches:
                raise ValueError(f"corpus.path={path!r}: no such file or folder, and no file matches it as a glob")
        roots.append(root)
        found += matches
    shared = Path(os.path.commonpath(roots))
    named = sorted(((_regular(file), file.relative_to(shared).as_posix()) for file in found), key=lambda pair: pair[1])
    first: dict[Path, tuple[Path, str]] = {}
    for file, name in named:  # a link's name says how its file is packed, so it is read by that name
        first.setdefault(file.resolve(), (file, name))
    return list(first.values())


def _kind(path: str, place: Path) -> int | None:
    """The mode of what is there, or None."""
    try:
        return place.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ValueError(f"corpus.path={path!r}: cannot be read: {error.strerror}") from error


def _regular(file: Path) -> Path:
    """The file itself; a ValueError if nothing can be read from it."""
    try:
        is_regular = stat.S_ISREG(file.stat().st_mode)
    except OSError as error:
        what = "is a link to nothing" if file.is_symlink() else f"cannot be read: {error.strerror}"
        raise ValueError(f"corpus.path: {file} {what}; mend or remove it") from error
    if not is_regular:
        raise ValueError(f"corpus.path: {file} is no regular file (a pipe or a device); remove it")
    return file


def _refuse(error: OSError) -> None:
    raise ValueError(f"corpus.path: the folder {error.filename} cannot be read: {error.strerror}") from error


def _walk(root: Path, *, onerror: Callable[[OSError], None] | None = _refuse) -> Iterator[Path]:
    """Every file below a folder, links followed, each folder once."""
    entered = set()
    for folder, below, names in os.walk(root, onerror=onerror, followlinks=True):
        place = Path(folder)
        status = place.stat()
        identity = status.st_dev, status.st_ino
        if identity in entered or (place != root and is_own_output(place)):
            below.clear()
            continue
        entered.add(identity)
        below.sort()  # of two ways to one folder, the same is taken everywhere
        yield from (place / name for name in names)


def _match(pattern: Path, root: Path) -> Iterator[Path]:
    """The files that a glob names. As in a shell, hidden names and folders that cannot be read are passed over."""
    if "**" in pattern.parts:  # Python's glob enters a folder by each of the links to it: for ever, where two lead up
        wanted = pattern.relative_to(root).parts
        yield from (file for file in _walk(root, onerror=None) if _fits(file.relative_to(root).parts, wanted))
        return
    own: dict[Path, bool] = {}
    for match in map(Path, glob.iglob(str(pattern), recursive=True)):
        above = [folder for folder in match.parents if folder.is_relative_to(root) and folder != root]
        for folder in above:
            if folder not in own:
                own[folder] = is_own_output(folder)
        if not match.is_dir() and not any(own[folder] for folder in above):
            yield match


def _fits(names: tuple[str, ...], wanted: tuple[str, ...]) -> bool:
    """Whether a path fits a glob, name by name; `**` stands for any number of them."""
    if not wanted or not names:
        return not names and set(wanted) <= {"**"}
    is_hidden = names[0].startswith(".") and not wanted[0].startswith(".")
    if wanted[0] == "**":
        return _fits(names, wanted[1:]) or (not is_hidden and _fits(names[1:], wanted))
    return not is_hidden and fnmatchcase(names[0], wanted[0]) and _fits(names[1:], wanted[1:])


def _fixed_part(pattern: Path) -> Path:
    """The folder in front of a glob's first wildcard."""
    parts = pattern.parts[:-1]
    wild = next((at for at, part in enumerate(parts) if glob.escape(part) != part), len(parts))
    return Path(*parts[:wild])


def mark_as_cache(cache: Path) -> None:
    """Say in the folder that it is a cache.

    Two threads may write the mark, and a kill come between them: what is left of the second is written over, too.
    """
    if not _begin(cache / TAG).startswith(SIGNATURE) or part_of(cache / TAG).exists():
        with replace_file(cache / TAG) as file:
            file.write(SIGNATURE + b"\n# stridemill makes all of it again\n")


def is_own_output(folder: Path) -> bool:
    """Whether a folder is a data set, a cache or a run's."""
    return (
        (folder / ".writing").is_dir()
        or MANIFEST.match(_begin(folder / "manifest.json")) is not None
        or _begin(folder / TAG).startswith(SIGNATURE)
        or b"name: stridemill" in _begin(folder / ".hydra" / "hydra.yaml")
        or b"name: stridemill" in _begin(folder / "multirun.yaml")
    )


def _begin(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(1 << 14)
    except OSError:
        return b""
