"""Which files a corpus consists of: paths, folders and globs, in a stable order."""

from __future__ import annotations

import glob
import os
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.write.compression import SUFFIXES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

TEXT_SUFFIXES = (".txt", ".md", ".rst")
JSONL_SUFFIXES = (".jsonl", ".ndjson")
PARQUET_SUFFIXES = (".parquet",)


def find_files(paths: Sequence[str], suffixes: tuple[str, ...], *, packed: bool = True) -> list[tuple[Path, str]]:
    """The files that paths, folders and globs name, each once, with names relative to what they share, in name order.

    Of a folder, at any depth, those with one of the `suffixes`, followed by that of a compression if `packed`.

    Raises:
        ValueError: one of `paths` names nothing that is there, or a folder with no file of the `suffixes`.

    """
    endings = (*suffixes, *(suffix + packing for suffix in suffixes for packing in SUFFIXES if packed))
    found: dict[Path, None] = {}
    for path in paths:
        place = Path(path).expanduser()
        if place.is_dir():
            matches = [file for file in _walk(place) if file.name.endswith(endings) and file.is_file()]
            if not matches:
                plus = f" (or {', '.join(SUFFIXES)} behind it)" if packed else ""
                raise ValueError(
                    f"corpus.path={path!r}: the folder holds no {', '.join(suffixes)} file{plus}; a glob names others"
                )
        elif place.exists():
            matches = [place]
        else:
            matches = [Path(match) for match in glob.iglob(str(place), recursive=True) if Path(match).is_file()]
            if not matches:
                raise ValueError(f"corpus.path={path!r}: no such file or folder, and no file matches it as a glob")
        found.update(dict.fromkeys(match.resolve() for match in matches))
    shared = os.path.commonpath([file.parent for file in found])
    return sorted(((file, file.relative_to(shared).as_posix()) for file in found), key=lambda pair: pair[1])


def _walk(folder: Path) -> Iterator[Path]:
    """Every file below a folder. A folder that cannot be read is an error here; a glob passes over it in silence."""

    def refuse(error: OSError) -> None:
        raise ValueError(f"corpus.path: the folder {error.filename} cannot be read: {error.strerror}") from error

    for place, _, names in os.walk(folder, onerror=refuse):
        yield from (Path(place, name) for name in names)
