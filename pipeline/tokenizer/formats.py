"""Recognise tokenizer files by their first bytes, to tell a user what a file is and how to use it.

Two formats are read: a `tokenizer.json` (`tokenizer=huggingface`) and a rank file (`tokenizer=tiktoken_file`). For each
other format that people have, there is a way to a `tokenizer.json`.
"""

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.rules import shorten

HEAD_BYTES = 4096
LONGEST_REASON = 200

_SAVE = (
    'convert it, python -c "from transformers import AutoTokenizer as T; '
    "T.from_pretrained('<its folder>').save_pretrained('out')\", and give tokenizer.path=out"
)
_FROM_VOCAB = "python -c \"from tokenizers import {kind} as T; T({files}).save('tokenizer.json')\""
_MERGES = _FROM_VOCAB.format(kind="ByteLevelBPETokenizer", files="'vocab.json', 'merges.txt'")
_WORDS = _FROM_VOCAB.format(kind="BertWordPieceTokenizer", files="'vocab.txt'")


class Format(NamedTuple):
    """What a file is, and what to do with it."""

    what: str
    remedy: str


RANK_FILE = Format("a rank file", "use tokenizer=tiktoken_file for it")
TOKENIZER_JSON = Format("a tokenizer.json", "use tokenizer=huggingface for it")
SENTENCEPIECE = Format("a SentencePiece model", _SAVE)
TEKKEN = Format("a tekken file", "take the tokenizer.json of the same model from the hub, or " + _SAVE)
VOCAB_JSON = Format("the vocab.json of a GPT-2 tokenizer", f"with its merges.txt, {_MERGES}")
MERGES = Format("the merges.txt of a GPT-2 tokenizer", f"with its vocab.json, {_MERGES}")
VOCAB_TXT = Format("the vocab.txt of a BERT tokenizer", f"build a tokenizer.json, {_WORDS}")
TOKENIZER_CONFIG = Format("a tokenizer_config.json", "give the tokenizer.json next to it")
HTML = Format("a web page", "download the file itself, not the page that shows it")
LFS_POINTER = Format("a Git LFS pointer, not the file itself", "fetch the file with git lfs pull")
PACKED = Format("a compressed file", "unpack it")

# The files of a folder that has no tokenizer.json, the most telling first.
NEIGHBOURS = {
    "tekken.json": TEKKEN,
    "merges.txt": MERGES,
    "vocab.json": VOCAB_JSON,
    "vocab.txt": VOCAB_TXT,
    "spiece.model": SENTENCEPIECE,
    "sentencepiece.bpe.model": SENTENCEPIECE,
}


def recognise(data: bytes) -> Format | None:
    """Return the format of a file's content; None if it is unknown."""
    head = data[:HEAD_BYTES]
    for magic, known in (
        (b"\x1f\x8b", PACKED),
        (b"PK\x03\x04", PACKED),
        (b"\x28\xb5\x2f\xfd", PACKED),
        (b"version https://git-lfs", LFS_POINTER),
        (b"#version", MERGES),
    ):
        if head.startswith(magic):
            return known
    if head[:1] == b"\n" and re.match(rb"\n.\n?", head, re.DOTALL) and b"\x15" in head[:64]:
        return SENTENCEPIECE  # a protobuf whose first field is a list of pieces with scores
    if re.match(rb"\s*<(!doctype|html|\?xml)", head, re.IGNORECASE):
        return HTML
    if re.match(rb"[A-Za-z0-9+/]+=* \d+\r?\n", head):
        return RANK_FILE
    if head.lstrip()[:1] == b"{":
        return _recognise_json(data)
    return VOCAB_TXT if re.search(rb"^\[(PAD|UNK)\]\r?$", head, re.MULTILINE) else None


def _recognise_json(data: bytes) -> Format | None:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if isinstance(value.get("model"), dict):
        return TOKENIZER_JSON
    if isinstance(value.get("vocab"), list) and "config" in value:
        return TEKKEN
    if any(key in value for key in ("tokenizer_class", "eos_token", "added_tokens_decoder")):
        return TOKENIZER_CONFIG
    is_vocab = len(value) > 1 and all(isinstance(token, int) for token in value.values())
    return VOCAB_JSON if is_vocab else None


def recognise_folder(folder: Path) -> tuple[str, Format] | None:
    """Return a file of a folder without a tokenizer.json from which one can be made, and its format."""
    for name, known in NEIGHBOURS.items():
        if (folder / name).is_file():
            return name, known
    for file in sorted([*folder.glob("*.model"), *folder.glob("*.tiktoken")]):
        with contextlib.suppress(OSError), file.open("rb") as opened:
            found = recognise(opened.read(HEAD_BYTES))
            if found:
                return file.name, found
    return None


def read_object(file: Path, key: str) -> dict[str, Any]:
    """Read a JSON object; a ValueError in one line says what the file is instead."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise ValueError(f"{key}: {file} cannot be read: {error.strerror}") from error
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        found = recognise(data)
        if found:
            raise ValueError(f"{key}: {found.remedy}. {file} is {found.what}") from error
        raise ValueError(f"{key}: {file} is not a JSON object: {reason(error)}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{key}: {file} is not a JSON object, but {type(value).__name__}")  # noqa: TRY004 - a user's file
    return value


def reason(error: BaseException) -> str:
    """Return an error's text in one short line; a long one is cut in the middle."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return shorten(" ".join(str(error).split()) or type(error).__name__, LONGEST_REASON)


def is_library_error(error: BaseException) -> bool:
    """Tell whether a library failed; a panic of its Rust code is no Exception."""
    return not isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit | MemoryError)


@contextlib.contextmanager
def library_errors(what: str) -> Iterator[None]:
    """Turn whatever a library raises, panics of its Rust code included, into a ValueError of one line."""
    try:
        yield
    except BaseException as error:
        if not is_library_error(error):
            raise
        raise ValueError(f"{what}: {reason(error)}") from error
