"""Recognise a file by its first bytes, so that an error says what it is and what to do with it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

SIGNATURE_BYTES = 4096
BINARY_NULS = 0.05  # above this fraction of NUL bytes, and with more than one, data is not text


class Format(NamedTuple):
    """What a file is."""

    name: str
    advice: str
    never_text: bool = False  # corpus=text refuses it too; it takes the bytes of any other format if they are text


_UTF16 = "convert it to UTF-8 (iconv -f UTF-16 -t UTF-8)"
_RENAME = "rename it to end in {}, or unpack it"
_FORMATS: tuple[tuple[re.Pattern[bytes], Format], ...] = tuple(
    (re.compile(pattern, re.DOTALL), one)
    for pattern, one in (
        (rb".{257}ustar(\0|  \0)", Format("a tar archive", "unpack it", never_text=True)),
        (rb"\x1f\x8b\x08", Format("data compressed by gzip", _RENAME.format(".gz"))),
        (rb"\x28\xb5\x2f\xfd", Format("data compressed by zstd", _RENAME.format(".zst"))),
        (rb"BZh[1-9]1AY&SY", Format("data compressed by bzip2", _RENAME.format(".bz2"))),
        (rb"\xfd7zXZ\x00", Format("data compressed by xz", _RENAME.format(".xz"))),
        (rb"PK(\x03\x04|\x05\x06)", Format("a zip archive", "unpack it")),
        (rb"7z\xbc\xaf\x27\x1c", Format("a 7z archive", "unpack it")),
        (rb"PAR1", Format("a Parquet file", "use corpus=parquet and give it a name that ends in .parquet")),
        (rb"ARROW1|\xff\xff\xff\xff.\x03?\0\0\x10\0\0\0", Format("an Arrow file", "convert it to Parquet")),
        (rb"SQLite format 3\0", Format("an SQLite database", "export its text as JSON lines")),
        (rb"%PDF-", Format("a PDF document", "extract its text first")),
        (rb"\xff\xfe\0\0|\0\0\xfe\xff", Format("UTF-32 text", "convert it to UTF-8 (iconv -f UTF-32 -t UTF-8)")),
        (rb"\xff\xfe|\xfe\xff|([\t\n\r -~]\0){4}|(\0[\t\n\r -~]){4}", Format("UTF-16 text", _UTF16)),
        (
            rb"version https://git-lfs\.github\.com/spec/v1\s+oid ",
            Format("a Git LFS pointer, not the file itself", "run `git lfs pull` to fetch the file", never_text=True),
        ),
        (rb"(\xef\xbb\xbf)?\s*(?i:<(!doctype html|html)[\s>])", Format("an HTML page", "extract its text first")),
        (
            rb"(\xef\xbb\xbf)?\s*\[\s*\{",
            Format(
                "a JSON array of objects",
                "corpus=jsonl needs one object on each line: jq -c '.[]' in.json > out.jsonl",
            ),
        ),
        (
            rb"(\xef\xbb\xbf)?\s*\{[ \t]*\r?\n\s*\"",
            Format(
                "JSON printed over several lines",
                "corpus=jsonl needs one object on each line: jq -c . in.json > out.jsonl",
            ),
        ),
    )
)
_JSON_LINES = re.compile(rb"(\xef\xbb\xbf)?\s*\{\s*\"")


def recognise(head: bytes) -> Format | None:
    """Return the format of a file by its first `SIGNATURE_BYTES`; None if it is none of those known here."""
    return next((one for pattern, one in _FORMATS if pattern.match(head)), None)


_NEVER_TEXT = re.compile(
    b"|".join(b"(?:%b)" % pattern.pattern for pattern, one in _FORMATS if one.never_text), re.DOTALL
)


def check_text(path: str, head: bytes) -> None:
    """Raise a ValueError if a file that starts like this is never text, whatever its bytes are."""
    if _NEVER_TEXT.match(head) and (found := recognise(head[:SIGNATURE_BYTES])):
        raise ValueError(f"{path}: is {found.name}; {found.advice}")


def check_format(path: str, blocks: Iterator[bytes], *, text: bool = False) -> Iterator[bytes]:
    """Yield a file's blocks; raise a ValueError if it is not JSON lines, or with `text` if it is never text."""
    head = next(blocks, b"")
    if text:
        check_text(path, head)
    elif found := recognise(head[:SIGNATURE_BYTES]):
        raise ValueError(f"{path}: is {found.name}; {found.advice}")
    if head:
        yield head
    del head  # which is a complete block
    yield from blocks


def describe_content(head: bytes) -> str:
    """Say what a file is and what to do, for a reader that cannot read it; nothing if it is not known."""
    if not head:
        return "it is empty; remove it, or download it again"
    if found := recognise(head):
        return f"it is {found.name}; {found.advice}"
    return "it is JSON lines; use corpus=jsonl" if _JSON_LINES.match(head) else ""


def is_binary(num_nuls: int, num_bytes: int) -> bool:
    """Tell whether data is binary: many NUL bytes say so, as UTF-16 has one in two; a stray one does not."""
    return num_nuls > 1 and num_nuls > BINARY_NULS * num_bytes
