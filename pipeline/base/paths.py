"""Paths of users: home folders, and operating-system errors turned into advice."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.rules import has_scheme

if TYPE_CHECKING:
    from collections.abc import Iterator

_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
_FULL = (errno.ENOSPC, errno.EDQUOT)
_WRONG_KIND = (errno.ENOTDIR, errno.EEXIST, errno.ENOENT, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.ENXIO)
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


def expand_user(path: str) -> Path:
    """Replace a leading `~` by the home folder. If there is no such user, the path stays as it is, as in a shell."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 - pathlib's raises there


def strip_folders(path: str) -> str:
    """Return the last part of a URI or absolute path, whose folders belong to one site; a relative path stays."""
    return Path(path).name if Path(path).is_absolute() or path.startswith("~") or has_scheme(path) else path


def make_folder(folder: Path) -> None:
    """Create a folder of ours, and the folders that the user named above it.

    Raises:
        ValueError: a link has its name.

    """
    folder.mkdir(parents=True, exist_ok=True)
    if folder.is_symlink():
        raise ValueError(f"{folder} is a symbolic link, and nothing is written through a link there; remove it")


@contextlib.contextmanager
def allow_read_only() -> Iterator[None]:
    """Pass over a write that a run can do without, where writing is forbidden."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FORBIDDEN:
            raise


@contextlib.contextmanager
def translate_os_errors(folder: Path | str, key: str) -> Iterator[None]:
    """Turn errors of the operating system into a `ValueError` that says what to do; `key` is the config's."""
    try:
        yield
    except OSError as error:
        path = error.filename or folder
        kept = "Finished work is kept; run the same command again to resume"
        if error.errno in _FULL:
            full = path if has_scheme(str(folder)) else folder  # of a URI it is the disk for temporary files
            raise ValueError(f"{full}: the disk is full. Free some space, or choose another {key}. {kept}") from error
        if has_scheme(str(path)):
            stays = error.errno in (*_FORBIDDEN, *_WRONG_KIND, errno.EINVAL)
            raise ValueError(f"{path}: {error.strerror}{'' if stays else f'. {kept}'}") from error
        if error.errno == errno.EFBIG:
            raise ValueError(f"{folder}: a file is larger than this system or `ulimit -f` allows. {kept}") from error
        if error.errno == errno.EIO:
            raise ValueError(f"{path}: the disk failed: {error.strerror}. Choose another {key}. {kept}") from error
        if error.errno in _FORBIDDEN:
            raise ValueError(f"{path}: cannot be written: {error.strerror}. Choose another {key}") from error
        if error.errno in _WRONG_KIND:
            raise ValueError(f"{path}: cannot be created or read: {error.strerror}. Choose another {key}") from error
        if error.errno in _NO_LOCKS:
            raise ValueError(
                f"{path}: this file system cannot lock files ({error.strerror}), and without a lock two runs could "
                f"write there at once. Choose another {key}, on a local disk or a file system mounted with locks"
            ) from error
        raise


@contextlib.contextmanager
def renamed_in_errors(folder: str, uri: str) -> Iterator[None]:
    """Let errors of the block name a URI instead of the local folder that stands for it."""
    try:
        yield
    except (ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno in _FULL:
            raise  # it is about the local disk
        error.args = tuple(one.replace(folder, uri) if isinstance(one, str) else one for one in error.args)
        if isinstance(error, OSError) and isinstance(error.filename, str | os.PathLike):
            error.filename = os.fspath(error.filename).replace(folder, uri)
        raise
