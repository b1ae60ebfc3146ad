"""The data-set card: a data set's README.md, for people and for the Hugging Face `datasets` library.

Its YAML head tells `datasets.load_dataset(folder)` the splits. The card depends on the manifest and the names of the
sources alone, so that it is the same on every machine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.base.atomic import write_text
from pipeline.base.wording import counted

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pipeline.shards.manifest import Manifest

CARD_NAME = "README.md"
MARK = "<!-- written by stridemill for {} -->"  # a README.md without it was written by somebody else
HEAD = "---\nconfigs:\n- config_name: default\n  data_files:\n"
SHOWN_SOURCES = 20


def write_card(folder: Path, manifest: Manifest, sources: Sequence[str]) -> None:
    """Write README.md, unless it is this data set's card already: somebody may have added to it."""
    path = folder / CARD_NAME
    if is_card(path, manifest.fingerprint):
        return
    write_text(path, describe_data_set(manifest, sources))


def is_card(path: Path, fingerprint: str = "") -> bool:
    """Tell whether a file is the card of the data set with that fingerprint, or of any data set if none is given."""
    mark = MARK.format(fingerprint) if fingerprint else MARK.split("{", maxsplit=1)[0]
    return path.is_file() and mark in path.read_text(encoding="utf-8", errors="replace")


def is_damaged_card(path: Path) -> bool:
    """Tell whether a file is what is left of a card that was emptied or cut short."""
    if not path.is_file() or is_card(path):
        return False
    with path.open("rb") as file:
        found = file.read(len(HEAD))
    return HEAD.encode().startswith(found)


def describe_data_set(manifest: Manifest, sources: Sequence[str]) -> str:
    """Return the card's text."""
    windows, tokenizer, corpus = manifest.windows, manifest.tokenizer, manifest.corpus
    max_length, stride = windows["max_length"], windows["stride"]
    order = f"shuffled by seed {windows['seed']}" if windows["order"] == "shuffled" else "in the order of the text"
    bad = ", ".join(f"{count:,} {reason}" for reason, count in corpus["bad"].items()) or "none"
    unused = "; ".join(
        f"{counted(found['tokens'], 'token')} of {name}, with {counted(found['documents'], 'complete document')}"
        for name, found in windows["left_over"].items()
        if found["tokens"]
    )
    padding = "; ".join(
        f"{counted(count, 'position')} of {name} windows "
        f"({count / max(1, manifest.splits[name].num_windows * max_length):.2%})"
        for name, count in windows.get("padding", {}).items()
        if count
    )
    packed = windows["documents"] == "pack"
    between = "packed" if packed else f"stride {stride}"
    cut = "; ".join(
        f"{counted(count, 'document')} of {name}" for name, count in windows.get("cut", {}).items() if count
    )
    # A bare | would end the table's cell, even inside backticks.
    special = ", ".join(f"`{name}` {token}" for name, token in tokenizer["special_tokens"].items()).replace("|", r"\|")
    facts = {
        "sources": _list_sources(sources),
        "documents": f"{corpus['documents']:,}, {counted(corpus['characters'], 'character')}, "
        f"{counted(corpus['bytes'], 'byte')}",
        "rejected documents": bad,
        "tokenizer": f"`{tokenizer['name']}`, {tokenizer['vocab_size']:,} IDs, hash `{tokenizer['hash']}`",
        "special tokens": special,
        "window": f"max_length {max_length}, {between}",
        "tail, documents": f"`{windows['tail']}`, `{windows['documents']}`",
        "order": order,
        "unused tokens, in no window": unused or "none",
        "padding": padding or "none",
        **({"longer than a window, and cut": cut or "none"} if packed else {}),
        "overlap factor": f"{max_length / stride:,.4g} (max_length / stride): how many windows contain a token",
        "fingerprint": f"`{manifest.fingerprint}`",
    }
    counts = [
        f"| {name} | {split.num_documents:,} | {split.num_tokens:,} | {split.num_windows:,} | {len(split.shards):,} | "
        f"{split.num_bytes:,} |"
        for name, split in manifest.splits.items()
    ]
    head = [f"  - split: {name}\n    path: data/{name}-*.parquet" for name in manifest.splits]
    padded = "`length` is the number of its real tokens; " if windows["tail"] == "pad" else ""
    if packed:
        padded += "`segment_lengths` are the tokens of each document in it, in order; "
    has_tables = any(split.documents for split in manifest.splits.values())
    tables = (
        "\n`documents/` says which file and row that stream's tokens come from (`pipeline.locate`)."
        if has_tables
        else ""
    )
    return f"""{HEAD}{chr(10).join(head)}
---

# Token windows of {max_length} {"by best fit" if packed else f"with stride {stride}"}

Each row is a window. `input_ids` are its tokens; `target_ids` are the same shifted by one position, so do not shift
them again; `start` is its first token in the split's token stream; {padded}`next_id` is the last of `target_ids`.

| split | documents | tokens | windows | shards | bytes |
|---|---|---|---|---|---|
{chr(10).join(counts)}

| | |
|---|---|
{chr(10).join(f"| {name} | {value} |" for name, value in facts.items())}

{tables}The licence of the text is that of its sources. `manifest.json` has the sha256 of every shard;
`python -m pipeline 'stages=[verify]' shards.path=<this folder>` checks them.

## Load it

From this folder. In training, with stridemill:

```python
from pipeline import ShardLoader

loader = ShardLoader(".", split="train", batch_size=8, shuffle="auto", seed=0, drop_last=False)
batch = next(iter(loader))
print(batch.input_ids.shape, batch.target_ids.shape)
```

With [datasets](https://pypi.org/project/datasets/):

```python
import os

from datasets import load_dataset

splits = load_dataset(os.getcwd())  # or the folder's path from anywhere
print(splits["train"].num_rows, splits["train"][0]["input_ids"][:4])
```

With [DuckDB](https://duckdb.org):

```python
import duckdb

print(duckdb.sql("select count(*), sum(list_sum(input_ids)) from 'data/train-*.parquet'").fetchall())
```

With [Polars](https://pola.rs):

```python
import polars

frame = polars.scan_parquet("data/train-*.parquet")
print(frame.select(polars.len(), polars.col("start").max()).collect())
```

{MARK.format(manifest.fingerprint)}
"""  # noqa: S608 - a text to read; no query is run


def _list_sources(sources: Sequence[str]) -> str:
    names = list(dict.fromkeys(sources))
    shown = ", ".join(f"`{_one_cell(name)}`" for name in names[:SHOWN_SOURCES])
    return f"{len(names):,}: {shown}{', ...' if len(names) > SHOWN_SOURCES else ''}"


def _one_cell(name: str) -> str:
    r"""Return a file's name for a table cell: line feeds and the like as \n, and bars escaped."""
    visible = "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in name)
    return visible.replace("|", r"\|").replace("`", "'")
