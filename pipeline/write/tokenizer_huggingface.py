"""Tokenizers of the Hugging Face kind: a `tokenizer.json`, read by the package `tokenizers`.

The text is encoded as it is: no token is added, nothing is truncated or padded. A document is never cut, since the
rules in a tokenizer.json may look at all of it. The hash covers the whole file, in a canonical form.
"""

import functools
import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.write.engines import END_OF_TEXT, Counts, Encode, Ids, flat
from pipeline.write.vocabulary import Tokenizer, identity_of, unknown_id

# What published Hugging Face tokenizers call the token between two documents, where no tokenizer_config.json says.
END_OF_TEXT_NAMES = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "[EOS]")


def load_huggingface(path: str, special_text: str) -> Tokenizer:
    """The tokenizer in a tokenizer.json, in a folder with one, or of that name on the hub; ValueError if it is none."""
    try:
        import tokenizers
    except ImportError as error:
        raise ValueError(
            "tokenizer=huggingface needs the package tokenizers: pip install 'stridemill[huggingface]'"
        ) from error

    file, end_of_text_name = _huggingface_files(path)
    try:
        document = json.loads(file.read_text("utf-8"))
        # Windows are cut and padded by this pipeline; a tokenizer that truncates would lose text in silence.
        document |= {"truncation": None, "padding": None}
        canonical = json.dumps(document, sort_keys=True, separators=(",", ":"))
        core = tokenizers.Tokenizer.from_str(canonical)
    except Exception as error:  # tokenizers raises plain Exception for whatever it cannot read
        raise ValueError(f"tokenizer.path={path}: {file} cannot be loaded as a tokenizer.json: {error}") from error

    name = f"huggingface:{path if not Path(path).exists() else Path(path).resolve().name}"
    special_tokens = {token.content: i for i, token in core.get_added_tokens_decoder().items() if token.special}
    end_of_text = _find_end_of_text(special_tokens, end_of_text_name, file)
    known = set(core.get_vocab(with_added_tokens=True).values())
    vocab_size = max(known) + 1

    def pieces(ids: list[int]) -> list[bytes]:
        unknown = [token for token in ids if token not in known]
        if unknown:
            raise unknown_id(unknown[0], name)
        return [core.decode([token], skip_special_tokens=False).encode() for token in ids]

    return Tokenizer(
        name=name,
        hash=identity_of(
            tokenizer_json=canonical.encode(),
            special_tokens=special_tokens,
            vocab_size=vocab_size,
            end_of_text=end_of_text,
        ),
        vocab_size=vocab_size,
        special_tokens=special_tokens,
        end_of_text=special_tokens[end_of_text],
        engine="huggingface",
        special_text=special_text,
        cut_safe=False,
        _encode=huggingface_encoder(core, control=special_text == "control"),
        _pieces=pieces,
        _decode=functools.partial(core.decode, skip_special_tokens=False),
    )


def _huggingface_files(path: str) -> tuple[Path, str | None]:
    """The tokenizer.json at `path`, and the end-of-text token that the tokenizer_config.json beside it names."""
    local = Path(path).expanduser()
    file = local / "tokenizer.json" if local.is_dir() else local
    config: Path | None = file.with_name("tokenizer_config.json")
    if not file.is_file():
        if local.is_dir() or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", path) or path.endswith(".json"):
            raise ValueError(f"tokenizer.path={path}: {file} does not exist")
        file, config = _hub_files(path)
    if config is None or not config.is_file():
        return file, None
    try:
        eos = json.loads(config.read_text("utf-8")).get("eos_token")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"tokenizer.path={path}: {config} is not a JSON object: {error}") from error
    return file, eos["content"] if isinstance(eos, dict) else eos


def _hub_files(hub_name: str) -> tuple[Path, Path | None]:
    """A hub repository's two files: from the local cache if they are there, so that a run works offline."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    try:
        file = try_to_load_from_cache(hub_name, "tokenizer.json")
        if isinstance(file, str):
            config = try_to_load_from_cache(hub_name, "tokenizer_config.json")
            return Path(file), Path(config) if isinstance(config, str) else None
        file = hf_hub_download(hub_name, "tokenizer.json")
    except (OSError, ValueError) as error:  # the hub's errors are OSErrors, a malformed name is a ValueError
        raise ValueError(
            f"tokenizer.path={hub_name} is no local file or folder, and fetching its tokenizer.json from the Hugging "
            f"Face hub failed: {error}. Give a local tokenizer.json, or run once where there is a network."
        ) from error
    try:
        return Path(file), Path(hf_hub_download(hub_name, "tokenizer_config.json"))
    except OSError:
        return Path(file), None


def _find_end_of_text(special_tokens: dict[str, int], name: str | None, file: Path) -> str:
    """The one special token that ends a document: what the config names, or else the only known name among them."""
    candidates = [known for known in ([name] if name else END_OF_TEXT_NAMES) if known in special_tokens]
    if len(candidates) == 1:
        return candidates[0]
    problem = f"tokenizer_config.json says eos_token={name!r}" if name else "no tokenizer_config.json names one"
    raise ValueError(
        f"{file}: cannot tell which special token ends a document. {problem}, and the special tokens are "
        f"{', '.join(special_tokens) or 'none at all'}. Put a tokenizer_config.json beside it that says "
        '{"eos_token": "<one of them>"}.'
    )


def huggingface_encoder(tokenizer: Any, *, control: bool) -> Encode:
    """Encode with a `tokenizers.Tokenizer`, adding no tokens of its own (no BOS, no EOS)."""
    tokenizer.encode_special_tokens = not control  # True: "encode special tokens' names as ordinary text"

    def encode(texts: pa.Array) -> tuple[Ids, Counts]:
        return flat([e.ids for e in tokenizer.encode_batch_fast(texts.to_pylist(), add_special_tokens=False)])

    return encode
