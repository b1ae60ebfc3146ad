"""What the stages print: counts, sizes and rates, the first batch's shapes, and one window to read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.base.wording import counted, percent, rate, seconds, size, visible
from pipeline.corpus.quarantine import QUARANTINE_NAME
from pipeline.shards.entries import MANIFEST_NAME

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pipeline.cli.epoch import LoadReport
    from pipeline.shards.estimate import Estimate
    from pipeline.shards.manifest import SplitEntry
    from pipeline.shards.plan import PlanReport
    from pipeline.shards.verify import VerifyReport
    from pipeline.shards.write import WriteReport
    from pipeline.tokenizer.tokenizer import Tokenizer

SHOWN_TOKENS = 8
SHOWN_SOURCES = 20


def describe_write(report: WriteReport) -> str:
    """Return the write stage's counts, sizes and rates."""
    manifest = report.manifest
    corpus, tokenizer = manifest.corpus, manifest.tokenizer
    tokens = sum(split.num_tokens for split in manifest.splits.values())
    characters = counted(corpus["characters"], "character")
    per_token = f"{corpus['bytes'] / max(1, tokens):.2f} bytes of text per token"
    lines = [
        _line("corpus", counted(corpus["documents"], "document"), characters, size(corpus["bytes"])),
        _line("tokens", counted(tokens, "token"), f"{tokenizer['name']} by {report.engine}", per_token),
    ]
    lines += describe_document_tokens(tokenizer)
    if corpus["bad"]:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in corpus["bad"].items())
        rejected = counted(sum(corpus["bad"].values()), "document")
        lines.append(_line("rejected", rejected, reasons, f"listed in {report.path}/{QUARANTINE_NAME}"))
    if report.skipped:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in report.skipped.items())
        lines.append(_line("skipped", counted(sum(report.skipped.values()), "document"), f"without text: {reasons}"))
    lines += _describe_passed_over(report.passed_over)
    if corpus["special_text_found"]:
        lines.append(_line("special", f"{counted(corpus['special_text_found'], 'name')} of special tokens in the text"))
    if corpus["audited"]:
        lines.append(_line("checked", f"{counted(corpus['audited'], 'document')} re-encoded with tiktoken: same IDs"))
    for name, split in manifest.splits.items():
        stored = split.num_bytes
        lines.append(
            _line(
                name,
                counted(split.num_windows, "window"),
                f"max_length {split.max_length:,}, {describe_stride(manifest.windows)}",
                f"{counted(len(split.shards), 'shard')}, {size(stored)}",
                f"{stored / max(1, split.num_tokens):.2f} bytes on disk per token",
            )
        )
        unused = manifest.windows.get("left_over", {}).get(name, {"tokens": 0, "documents": 0})
        if unused["tokens"]:
            lines.append(_line("unused", describe_unused(name, split, unused)))
        if report.padding.get(name):
            lines.append(_line("padding", describe_padding(name, report.padding[name], split)))
        if cut := manifest.windows.get("cut", {}).get(name):
            lines.append(_line("cut", f"{counted(cut, 'document')} of {name} longer than a window"))
    lines.append(_line("start", seconds(report.start_seconds), "to load the vocabulary and to find and hash the input"))
    if report.finished_before:
        lines.insert(0, f"up to date: {report.path} already holds this data set; nothing to write")
    else:
        windows = sum(split.num_windows for split in manifest.splits.values())
        window_tokens = sum(split.num_windows * split.max_length for split in manifest.splits.values())
        lines += [
            _line("tokenize", seconds(report.tokenize_seconds), *describe_chunks(report)),
            _line(
                "write",
                seconds(report.write_seconds),
                rate(windows, report.write_seconds, "windows"),
                rate(window_tokens, report.write_seconds, "tokens"),
            ),
        ]
    return "\n".join(["write", *lines, f"  {'in':<10}{report.path}"])


def _describe_passed_over(passed_over: dict[str, dict[str, Any]]) -> list[str]:
    """Return a line for each kind of files in the corpus's folders that it does not take."""
    return [
        _line("not read", counted(one["files"], "file"), kind, size(one["bytes"]), f"such as {one['example']}")
        for kind, one in passed_over.items()
    ]


def describe_document_tokens(tokenizer: dict[str, Any]) -> list[str]:
    """Return which token starts and which ends a document, and what the vocabulary says otherwise."""
    lines = [
        _line(role, f"{visible(one['name'])} ({one['id']}) {what}, from {one['source']}")
        for role, what in (("bos", "starts each document"), ("eos", "separates documents"))
        if (one := tokenizer.get(role))
    ]
    return lines + [_line("note", note) for note in tokenizer.get("notes", ())]


def describe_stride(windows: dict[str, Any]) -> str:
    """Return how windows follow one another."""
    return "packed" if windows["documents"] == "pack" else f"stride {windows['stride']:,}"


def describe_unused(name: str, split: SplitEntry, unused: dict[str, int]) -> str:
    """Return how many tokens of a split no window contains."""
    tokens, documents = unused["tokens"], unused["documents"]
    share = f"{tokens:,} of {split.num_tokens:,} {name} tokens ({percent(tokens, split.num_tokens)})"
    lost = f"{counted(documents, 'document')} {'is' if documents == 1 else 'are'}" if documents else "no document is"
    return f"{share} {'is' if tokens == 1 else 'are'} in no window; {lost} lost"


def describe_padding(name: str, padding: int, split: SplitEntry) -> str:
    """Return how many positions of a split's windows have no token."""
    total = split.num_windows * split.max_length
    return f"{padding:,} of {counted(total, 'position')} in {name} windows ({percent(padding, total)}) have no token"


def describe_chunks(report: WriteReport) -> list[str]:
    """Return the rate of what this run tokenized, and how many chunks it made and found."""
    if not report.chunks_made:
        return [f"{counted(report.chunks, 'chunk')} found in the cache"]
    made = f"{counted(report.chunks_made, 'chunk')} of {report.chunks:,} made, the others found in the cache"
    if report.chunks_made == report.chunks:
        made = f"{counted(report.chunks, 'chunk')} made"
    if report.chunks_mended:
        made += f"; {report.chunks_mended:,} had been damaged in the cache: check that disk"
    speed = rate(report.bytes_tokenized, report.new_text_seconds, "B")
    if report.chunks_made < report.chunks:
        speed += f" for {size(report.bytes_tokenized)} of new text"
    return [speed, made]


def describe_plan(report: PlanReport) -> str:
    """Return what the write stage will produce and cost, with margins."""
    share = f"{report.sampled_bytes / max(1, report.input_bytes):.0%}".replace("%", " %")
    lines = [
        _line("sample", f"{size(report.sampled_bytes)} of {size(report.input_bytes)}", f"{share} of the input"),
        *_describe_starts(report),
        *(_line(name, _margin(getattr(report, name), show)) for name, show in PLANNED.items()),
        *_describe_plan_details(report),
        *_describe_passed_over(report.passed_over),
    ]
    return "\n".join(["plan of the write stage", *lines, f"  {'for':<10}{report.path}"])


def _describe_starts(report: PlanReport) -> Iterable[str]:
    """Say if only the starts of compressed files were read."""
    if report.sampled_starts:
        files = counted(report.sampled_starts, "compressed file")
        yield _line("sample", f"of {files} only the start; the rest is assumed to be like it")


def _describe_plan_details(report: PlanReport) -> Iterable[str]:
    """Yield what a plan says of splits, padding, disks and documents, and why the write stage would stop."""
    if len(report.splits) > 1:
        yield _line("splits", *(f"{name} {_margin(found, _count)} windows" for name, found in report.splits.items()))
    for name, found in report.padding.items():
        if found.value:
            total = report.splits[name].value * report.max_length
            positions = f"{_count(total)} positions in {name} windows ({percent(found.value, total)})"
            yield _line("padding", f"{_margin(found, _count)} of {positions} have no token")
    for name, found in report.cut.items():
        if found.value:
            noun = "document" if (found.value, found.margin) == (1, 0) else "documents"
            yield _line("cut", f"{_margin(found, _count)} {noun} of {name} longer than a window")
    disks = {"shards.path": "data set", "cache.path": "cache"}
    free = [f"{size(count)} free for the {disks[key]}" for key, count in report.free_bytes.items()]
    yield _line("disks", *free)
    yield _line("cache", f"{_margin(report.cache_bytes, size)} of new tokens")
    for what, counts in (("rejected", report.rejected), ("skipped", report.skipped)):
        if counts:
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in counts.items())
            yield _line(what, f"{counted(sum(counts.values()), 'document')} of the sample", reasons)
    yield _line("load", "not part of this plan")
    for stop in report.stops:
        yield _line("stops", f"the write stage would stop with exit code 1: {stop}")


def describe_comparison(compared: dict[str, dict[str, float]]) -> str:
    """Return which counts of the write stage are those of the plan, and what the plan said of the others."""
    same = [name for name, one in compared.items() if one["found"] == one["planned"]]
    lines = [_line("planned", f"exactly: {', '.join(same)}")] if same else []
    for name, one in compared.items():
        if name in same:
            continue
        show = PLANNED.get(name, _count)
        margin = f" ± {show(one['margin'])}" if one["margin"] else ""
        inside = abs(one["found"] - one["planned"]) <= one["margin"]
        note = "" if inside else "outside the margin" if one["margin"] else "the corpus was changed since the plan"
        lines.append(_line("planned", f"{name} {show(one['planned'])}{margin}", f"found {show(one['found'])}", note))
    return "\n".join(lines)


def _margin(estimate: Estimate, show: Callable[[float], str]) -> str:
    return f"{show(estimate.value)} ± {show(estimate.margin)}" if estimate.margin else f"{show(estimate.value)}"


def describe_verify(report: VerifyReport) -> str:
    """Return what was verified, and every problem with its file."""
    store = "without the token store, which is missing or damaged"
    if report.compared_with_store:
        store = "every window with the token store"
    lines = [
        _line(
            "checked",
            counted(report.shards, "shard"),
            counted(report.windows, "window"),
            size(report.bytes),
            seconds(report.seconds),
            rate(report.bytes, report.seconds, "B"),
        ),
        _line("compared", f"manifest, sha256, page checksums, schema, vocabulary; {store}"),
        *(_line("problem", f"{fault.file}: {fault.problem}") for fault in report.faults),
        *(_line("remedy", remedy) for remedy in _remedies(report)),
    ]
    lines += [_line("note", f"{visible(name)} does not belong to the data set") for name in report.strays]
    if not report.faults:
        lines.append(_line("result", "no problem found"))
    return "\n".join(["verify", *lines, f"  {'in':<10}{report.path}"])


def _remedies(report: VerifyReport) -> Iterable[str]:
    if any(fault.file != MANIFEST_NAME for fault in report.faults):
        yield "delete the files named above and run the write stage again: it writes what is missing"
    if any(fault.file == MANIFEST_NAME for fault in report.faults):
        if report.has_manifest:
            yield (
                "leave manifest.json where it is and run the write stage again with shards.overwrite=true: it writes "
                "the data set again"
            )
        else:
            yield (
                "restore manifest.json from a copy, or write the data set to another shards.path: without it "
                "stridemill cannot tell which data set these files belong to"
            )


def describe_load(report: LoadReport) -> str:
    """Return the load stage's rates, and the shapes of the first batch."""
    shapes = {**report.shapes, "weight": report.weight}
    letters = {"input_ids": "[B, T]", "target_ids": "[B, T]", "embeddings": "[B, T, D]", "weight": "[V, D]"}
    return "\n".join(
        [
            "load",
            _line(
                "batches",
                counted(report.batches, "batch"),
                f"{counted(report.windows, 'window')}, order {report.shuffle}",
                seconds(report.seconds),
                rate(report.tokens, report.seconds, "tokens"),
                f"loading alone {rate(report.tokens, report.load_seconds, 'tokens')}",
                f"first batch after {seconds(report.first_batch_seconds)}",
            ),
            *(f"  {name:<12}{shape!s:<18}{letters[name]}" for name, shape in shapes.items()),
            *_describe_sources(report.source_samples or {}),
        ]
    )


def _describe_sources(samples: dict[str, int]) -> list[str]:
    shown = [
        f"  source      {counted(count, 'sample')} of {path}" for path, count in list(samples.items())[:SHOWN_SOURCES]
    ]
    more = len(samples) - len(shown)
    return [*shown, f"  and {counted(more, 'source')} more, in summary.json"] if more else shown


def describe_window(report: LoadReport, tokenizer: Tokenizer) -> str:
    """Return the first window of the first batch: its inputs next to its targets, then both as text."""
    rows = [f"window {report.window_id}: each input predicts the token that follows it"]
    rows.append(f"  {'position':<10}{'input':<26}target")
    pairs = list(zip(report.input_ids, report.target_ids, strict=True))
    for position, (given, wanted) in enumerate(pairs[:SHOWN_TOKENS]):
        rows.append(f"  {position:<10}{_token(given, tokenizer):<26}{_token(wanted, tokenizer):<26}".rstrip())
    if len(pairs) > SHOWN_TOKENS:
        rows.append(f"  ... and {len(pairs) - SHOWN_TOKENS:,} more")
    targets = [token for token in report.target_ids if token >= 0]
    rows.append(f"  input   {_excerpt(tokenizer.decode(report.input_ids))}")
    rows.append(f"  target  {_excerpt(tokenizer.decode(targets))}")
    return "\n".join(rows)


def _count(value: float) -> str:
    return f"{round(value):,}"


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
