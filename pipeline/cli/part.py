"""What a part of an array job prints: its share, what it did, and what is still missing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.base.wording import counted, rate, seconds, size
from pipeline.shards.part import name_parts

if TYPE_CHECKING:
    from pipeline.shards.part import PartReport


def describe_part(report: PartReport) -> str:
    """Return what one part did, and what is still missing."""
    lines = [f"part {report.part} of {report.parts} of the write stage"]
    if report.finished_before:
        lines.append(f"up to date: {report.path} already holds this data set; nothing to write")
        return "\n".join([*lines, f"  {'in':<10}{report.path}"])
    found = report.own_chunks - report.chunks_made
    lines += [
        _line("share", f"{report.own_chunks:,} of {counted(report.chunks, 'chunk')}"),
        _line(
            "tokenize",
            seconds(report.tokenize_seconds),
            rate(report.bytes_tokenized, report.tokenize_seconds, "B") if report.chunks_made else "",
            size(report.bytes_tokenized) + " of new text" if report.chunks_made else "",
            f"{counted(report.chunks_made, 'chunk')} made, {found:,} found in the cache",
        ),
    ]
    if report.chunks_mended:
        lines.append(_line("damaged", f"{counted(report.chunks_mended, 'chunk')} in the cache: check that disk"))
    if report.finished_meanwhile:
        lines.append(_line("complete", "a run without executor.part has finished the data set meanwhile"))
    elif report.waiting:
        lines.append(_line("missing", f"{report.waiting}: run these parts, then this one again to write its shards"))
    else:
        lines += [
            _line("share", f"{report.own_shards:,} of {counted(report.shards, 'shard')}"),
            _line(
                "write",
                seconds(report.write_seconds),
                f"{counted(report.shards_written, 'shard')} written, "
                f"{report.own_shards - report.shards_written:,} were there",
            ),
        ]
        if count := sum(report.missing_shards.values()):
            lines.append(_line("missing", f"{counted(count, 'shard')} of {name_parts(report.missing_shards)}"))
        else:
            lines.append(_line("missing", "no shard: the same command without executor.part completes the data set"))
    return "\n".join([*lines, f"  {'in':<10}{report.path}"])


def _line(name: str, *parts: str) -> str:
    return f"  {name:<9} " + "   ".join(part for part in parts if part)
