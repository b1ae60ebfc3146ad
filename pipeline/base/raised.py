"""Where an error was raised: a `ValueError` that this package raised on purpose is for the user; others are defects."""

from __future__ import annotations

import dis
from pathlib import Path

OWN_FOLDERS = tuple(str(Path(__file__).resolve().parents[at] / name) for at, name in ((1, ""), (2, "scripts")))


def is_raised_here(error: BaseException) -> bool:
    """Tell whether a `raise` statement of this package raised an error, not a function that it called."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    if frame is None:
        return True
    code = frame.tb_frame.f_code
    is_raise = code.co_code[frame.tb_lasti] == dis.opmap["RAISE_VARARGS"]
    return is_raise and str(Path(code.co_filename).resolve()).startswith(OWN_FOLDERS)
