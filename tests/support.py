"""What tests share: the config's sections by short names, and programs run as a user runs them."""

import base64
import dataclasses
import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from warm import run_warm

from pipeline import (
    CorpusConfig,
    ExecutorConfig,
    ShardsConfig,
    SplitConfig,
    StoreWindows,
    TokenizerConfig,
    WindowConfig,
    read_manifest,
)
from pipeline.base.reading import sign
from pipeline.corpus import small_files

ROOT = Path(__file__).resolve().parents[1]

# Short names of the sections' fields that a test sets: option -> (section, field).
OPTIONS = {
    "corpus": ("corpus", "name"),
    **{f"corpus_{field}": ("corpus", field) for field in ("path", "url", "sha256", "subset", "part")},
    **{field: ("corpus", field) for field in ("text_field", "on_bad", "max_bad_fraction", "max_document_bytes")},
    "tokenizer": ("tokenizer", "name"),
    **{f"tokenizer_{field}": ("tokenizer", field) for field in ("path", "pattern", "eos")},
    **{field: ("tokenizer", field) for field in ("engine", "special_text", "audit")},
    **{field: ("window", field) for field in ("max_length", "stride", "allow_gaps", "tail", "documents")},
    "validation": ("split", "validation"),
    "split_seed": ("split", "seed"),
    **{field: ("shards", field) for field in ("windows_per_shard", "windows_per_group", "compression", "order")},
    "order_seed": ("shards", "seed"),
    "keep_documents": ("shards", "documents"),
    "overwrite": ("shards", "overwrite"),
    "workers": ("executor", "workers"),
}
SECTIONS = {
    "corpus": CorpusConfig,
    "tokenizer": TokenizerConfig,
    "window": WindowConfig,
    "split": SplitConfig,
    "shards": ShardsConfig,
    "executor": ExecutorConfig,
}


def read_ranks(path):
    """A rank file, read in the plainest way: on each line a token in base64 and its rank."""
    words = [line.split() for line in path.read_bytes().splitlines()]
    return {base64.b64decode(token): int(rank) for token, rank in words}


def divide_small_files(monkeypatch, files=2):
    """Group small files by about this many instead of by megabytes."""
    for name, value in {"LEAST_BYTES": 0, "FILE_BYTES": 1 << 20, "GROUP_BYTES": files << 20}.items():
        monkeypatch.setattr(small_files, name, value)


def store_windows(store, **options):
    """Windows of a token store, by the same short names."""
    given = sections(**options)
    return StoreWindows(store, given["window"], given.get("shards", ShardsConfig()))


def sections(**options):
    """Turn short names into the arguments of `write_shards`: `max_length=4` becomes `window=WindowConfig(...)`."""
    values = {"executor": {"workers": 1}}
    given = {"cache": options.pop("cache_path")} if "cache_path" in options else {}
    for option, value in options.items():
        section, field = OPTIONS[option]
        values.setdefault(section, {})[field] = value
    return given | {section: SECTIONS[section](**fields) for section, fields in values.items()}


def write_format_1(folder, **changes):
    """Turn a data set into one of format 1, whose manifest lists the shards, with other values in its fields."""
    path = folder / "manifest.json"
    fields = json.loads(path.read_text()) | {"format_version": 1} | changes
    for name, split in fields["splits"].items():
        shards = [dataclasses.asdict(shard) for shard in read_manifest(folder).splits[name].shards]
        for key in ("num_shards", "bytes", "windows_per_group", "windows_per_shard"):
            del split[key]
        split["shards"] = shards
    del fields["index"]
    (folder / "index.parquet").unlink()
    path.write_text(json.dumps(sign(fields)))
    return fields


def environment(**more):
    """The environment of a program that imports this checkout from any folder."""
    return {**os.environ, "PYTHONPATH": str(ROOT), **more}


def run_program(*arguments, cwd=ROOT, timeout=300, **more):
    """Run `-m`, `-c` or a program in a process that has imported torch already, and return what it did."""
    return run_warm(*map(str, arguments), cwd=str(cwd), environment=environment(**more), timeout=timeout)


def open_ranks(ranks):
    """The environment of each process of a job, as torchrun sets it, and the store in which they meet.

    The system chooses the store's port. It is open as long as the store is referred to.
    """
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "WORLD_SIZE": str(ranks)}
    shared |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "NODE_RANK": "0"}
    return [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)], store


def run_ranks(*arguments, ranks, **options):
    """Run a program in this many processes, as torchrun does, and return what each of them did."""
    own, _store = open_ranks(ranks)
    with ThreadPoolExecutor(ranks) as pool:
        return list(pool.map(lambda more: run_program(*arguments, **options, **more), own))


def run_python(*arguments, cwd=ROOT, timeout=300, **more):
    """Run Python with these arguments (a program of the repository, `-m` or `-c`) and return what it did."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env=environment(**more),
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def errors_of(done):
    """What a program has on standard error besides the lines of its stages' progress."""
    lines = done.stderr.splitlines(keepends=True)
    return "".join(line for line in lines if not re.match(r"(point \d+  )?[a-z]+  [\d.,]+ of [\d.,]+ ", line))


def write_config_files(page, folder):
    """Write the `yaml` blocks of a page of the docs, each named by its first line, as files below a folder."""
    for name, body in re.findall(r"^```yaml\n# (\S+)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(body)


def varint(value):
    """An unsigned number as Thrift's compact protocol writes it."""
    code = bytearray()
    while value > 127:
        code.append(value & 127 | 128)
        value >>= 7
    return bytes([*code, value])
