"""What a run ends with: the counts and rates of each stage, the first batch's shapes, and one window to read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.shards.manifest import MANIFEST_NAME

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.cli.epoch import LoadReport
    from pipeline.shards.plan import Estimate, PlanReport
    from pipeline.shards.verify import VerifyReport
    from pipeline.shards.write import WriteReport
    from pipeline.tokenizer.tokenizer import Tokenizer

SHOWN_TOKENS = 8


def describe_write(report: WriteReport) -> str:
    """The write stage in a few lines."""
    manifest = report.manifest
    corpus, tokenizer = manifest.corpus, manifest.tokenizer
    tokens = sum(split.num_tokens for split in manifest.splits.values())
    lines = []
    if report.finished_before:
        lines.append(f"finished before: {report.path} holds this very data set, so nothing was written")
    lines += [
        _line(
            "corpus",
            f"{corpus['documents']:,} documents",
            f"{corpus['characters']:,} characters",
            size(corpus["bytes"]),
        ),
        _line(
            "tokens",
            f"{tokens:,} tokens",
            f"{tokenizer['name']} by {report.engine}",
            f"{corpus['bytes'] / max(1, tokens):.2f} bytes of text per token",
        ),
    ]
    if corpus["bad"]:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in corpus["bad"].items())
        lines.append(
            _line(
                "left out",
                f"{sum(corpus['bad'].values()):,} bad documents",
                reasons,
                f"see {report.path / 'quarantine.jsonl'}",
            )
        )
    if corpus["special_text_found"]:
        found = corpus["special_text_found"]
        lines.append(_line("special", f"{found:,} names", "special tokens' names found inside the text"))
    if corpus["audited"]:
        lines.append(_line("audit", f"{corpus['audited']:,} documents", "encoded by tiktoken as well: the same IDs"))
    for name, split in manifest.splits.items():
        stored = sum(shard.bytes for shard in split.shards)
        left = manifest.windows.get("left_over", {}).get(name, {"tokens": 0, "documents": 0})
        lines.append(
            _line(
                name,
                f"{split.num_windows:,} windows",
                f"max_length {split.max_length}, stride {split.stride}",
                f"{len(split.shards)} shard{'s' * (len(split.shards) > 1)}, {size(stored)}",
                f"{stored / max(1, split.num_tokens):.2f} bytes on disk per token",
            )
        )
        if left["tokens"]:
            share = left["tokens"] / max(1, split.num_tokens)
            lines.append(
                _line(
                    "left over",
                    f"{left['tokens']:,} tokens of {name} ({share:.2%})",
                    f"in no window, {left['documents']:,} documents wholly",
                )
            )
    lines.append(_line("start", seconds(report.start_seconds), "vocabulary loaded, input found and hashed"))
    if not report.finished_before:
        made = f"{report.chunks_made} of {report.chunks} chunks new" if report.chunks_made else "all found in the cache"
        if report.chunks_mended:
            made += f", {report.chunks_mended} of them damaged in the cache and made again: look at that disk"
        text = rate(corpus["bytes"], report.tokenize_seconds, "B")
        lines.append(_line("tokenize", seconds(report.tokenize_seconds), text if report.chunks_made else "", made))
        windows = sum(split.num_windows for split in manifest.splits.values())
        delivered = sum(split.num_windows * split.max_length for split in manifest.splits.values())
        lines.append(
            _line(
                "write",
                seconds(report.write_seconds),
                rate(windows, report.write_seconds, "windows"),
                rate(delivered, report.write_seconds, "tokens"),
            )
        )
    return "\n".join(["write", *lines, f"  {'in':<10}{report.path}"])


def describe_plan(report: PlanReport) -> str:
    """What a write stage will make and cost, each with its margin."""
    share = report.sampled_bytes / max(1, report.input_bytes)
    lines = [
        _line("sample", f"{size(report.sampled_bytes)} of {size(report.input_bytes)}", f"{share:.0%} of the input"),
        *(_line(name, _margin(getattr(report, name), show)) for name, show in PLANNED.items()),
    ]
    return "\n".join(["plan", *lines, f"  {'for':<10}{report.path}"])


def _margin(estimate: Estimate, show: Callable[[float], str]) -> str:
    return f"{show(estimate.value)} ± {show(estimate.margin)}" if estimate.margin else f"{show(estimate.value)}"


def describe_verify(report: VerifyReport) -> str:
    """What was verified, and every fault with its file."""
    store = "not the token store, which is gone or damaged"
    if report.compared_with_store:
        store = "every window compared with the token store"
    lines = [
        _line(
            "checked",
            f"{report.shards:,} shards",
            f"{report.windows:,} windows",
            size(report.bytes),
            seconds(report.seconds),
            rate(report.bytes, report.seconds, "B"),
        ),
        _line("against", "manifest, sha256, page checksums, schema, vocabulary", store),
        *(f"  fault     {fault.file}: {fault.problem}" for fault in report.faults),
    ]
    if report.faults:
        shards = any(fault.file != MANIFEST_NAME for fault in report.faults)
        manifest = any(fault.file == MANIFEST_NAME for fault in report.faults)
        if shards:
            lines.append(
                "  remedy    remove the shards that are named and run the write stage again: it writes what is gone"
            )
        if manifest and (report.path / MANIFEST_NAME).is_file():
            lines.append(
                "  remedy    leave manifest.json and run the write stage again with shards.overwrite=true: it writes "
                "the data set anew"
            )
        elif manifest:
            lines.append(
                "  remedy    bring manifest.json back from a copy, or write the data set to another shards.path: "
                "without it these files are nobody's"
            )
    else:
        lines.append("  whole     no fault found")
    return "\n".join(["verify", *lines, f"  {'in':<10}{report.path}"])


def describe_load(report: LoadReport) -> str:
    """The load stage in a few lines: rates, and the shapes of the first batch."""
    shapes = {**report.shapes, "weight": report.weight}
    letters = {"input_ids": "[B, T]", "target_ids": "[B, T]", "embeddings": "[B, T, D]", "weight": "[V, D]"}
    return "\n".join(
        [
            "load",
            _line(
                "batches",
                f"{report.batches:,} batches",
                f"{report.windows:,} windows, order {report.shuffle}",
                seconds(report.seconds),
                rate(report.tokens, report.seconds, "tokens"),
                f"loading alone {rate(report.tokens, report.load_seconds, 'tokens')}",
                f"the first after {seconds(report.first_batch_seconds)}",
            ),
            *(f"  {name:<12}{shape!s:<18}{letters[name]}" for name, shape in shapes.items()),
        ]
    )


def describe_window(report: LoadReport, tokenizer: Tokenizer) -> str:
    """The first window of the first batch: its inputs and its targets side by side, then as text."""
    rows = [f"window {report.window_id}: each input predicts the token that follows it"]
    rows.append(f"  {'place':<8}{'input':<26}target")
    pairs = list(zip(report.input_ids, report.target_ids, strict=True))
    for place, (given, wanted) in enumerate(pairs[:SHOWN_TOKENS]):
        rows.append(f"  {place:<8}{_token(given, tokenizer):<26}{_token(wanted, tokenizer):<26}".rstrip())
    if len(pairs) > SHOWN_TOKENS:
        rows.append(f"  ... and {len(pairs) - SHOWN_TOKENS:,} more")
    targets = [token for token in report.target_ids if token >= 0]
    rows.append(f"  input   {_excerpt(tokenizer.decode(report.input_ids))}")
    rows.append(f"  target  {_excerpt(tokenizer.decode(targets))}")
    return "\n".join(rows)


def size(count: float) -> str:
    """Bytes in units people use: powers of ten."""
    return f"{_scaled(count)}B"


def rate(count: float, duration: float, unit: str) -> str:
    """So many a second: '45 MB/s', '36 M tokens/s'."""
    number = _scaled(count / max(duration, 1e-9))
    return f"{number}B/s" if unit == "B" else f"{number.rstrip()} {unit}/s"


def seconds(duration: float) -> str:
    """A duration, to three digits."""
    return f"{duration:.3g} s" if duration < 100 else f"{duration:,.0f} s"


def _count(value: float) -> str:
    return f"{round(value):,}"


def _scaled(value: float) -> str:
    for unit in ("", "k", "M", "G"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} T"


PLANNED: dict[str, Callable[[float], str]] = {
    "documents": _count,
    "tokens": _count,
    "windows": _count,
    "shards": _count,
    "bytes": size,
    "memory": size,
    "seconds": seconds,
}


def _line(name: str, *parts: str) -> str:
    return f"  {name:<9} " + "   ".join(part for part in parts if part)


def _token(token: int, tokenizer: Tokenizer) -> str:
    if token < 0:
        return f"{token} (ignored)"
    (piece,) = tokenizer.decode_pieces([token])
    shown = repr(piece).replace("\\\\x", "\\x")  # a part of a character, which is no text by itself
    return f"{shown} {token}"


def _excerpt(text: str, width: int = 100) -> str:
    shown = repr(text)
    return shown if len(shown) <= width else f"{shown[: width // 2 - 2]} ... {shown[-(width // 2 - 3) :]}"
