"""Tokenizers of the Hugging Face kind: a `tokenizer.json`, read by the package `tokenizers`.

The text is encoded as it is: no token is added, nothing is truncated or padded, no merge is left out at random. A
document is never cut, since the rules in a tokenizer.json may depend on all of it. The hash covers the complete file in
a canonical form.
"""

import functools
import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.base.paths import expand_user
from pipeline.tokenizer.engines import Counts, DocumentError, Encode, Ids, flat
from pipeline.tokenizer.rank_files import END_OF_TEXT
from pipeline.tokenizer.tokenizer import Tokenizer, identity_of, unknown_id

# The end-of-text names of published Hugging Face tokenizers, for those without a tokenizer_config.json.
END_OF_TEXT_NAMES = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "[EOS]")

# A letter each of Linear A, cuneiform and the hieroglyphs: hardly any vocabulary has them, and no normalizer that
# removes control characters or unassigned ones removes them.
RARE_LETTERS = "\U00010600\U00012000\U00013000"


def load_huggingface(path: str, special_text: str) -> Tokenizer:
    """Load a tokenizer.json, a folder with one, or one of that name on the hub; ValueError if there is none."""
    try:
        import tokenizers
    except ImportError as error:
        raise ValueError(
            "tokenizer=huggingface needs the package tokenizers: pip install 'stridemill[huggingface]'"
        ) from error

    file, end_of_text_name = _huggingface_files(path)
    try:
        document = json.loads(file.read_text("utf-8"))
        # Windows are cut and padded by this pipeline; a tokenizer that truncates would silently lose text.
        document |= {"truncation": None, "padding": None}
        # Dropout leaves out merges at random, for training: each run would have other IDs under the same hash.
        if isinstance(document.get("model"), dict) and "dropout" in document["model"]:
            document["model"]["dropout"] = None
        canonical = json.dumps(document, sort_keys=True, separators=(",", ":"))
        core = tokenizers.Tokenizer.from_str(canonical)
    except Exception as error:  # tokenizers raises plain Exception for whatever it cannot read
        raise ValueError(f"tokenizer.path={path}: {file} cannot be loaded as a tokenizer.json: {error}") from error
    _refuse_lost_letters(core, path, file)

    name = f"huggingface:{path if not Path(path).exists() else Path(path).resolve().name}"
    special_tokens = {token.content: i for i, token in core.get_added_tokens_decoder().items() if token.special}
    end_of_text = _find_end_of_text(special_tokens, end_of_text_name, file)
    known = set(core.get_vocab(with_added_tokens=True).values())
    vocab_size = max(known) + 1

    def token_texts(ids: list[int]) -> list[bytes]:
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
        _encode=huggingface_encoder(core, name=name, control=special_text == "control"),
        _token_texts=token_texts,
        _decode=functools.partial(core.decode, skip_special_tokens=False),
    )


def _huggingface_files(path: str) -> tuple[Path, str | None]:
    """Find the tokenizer.json at `path`, and the end-of-text token that the tokenizer_config.json next to it names."""
    local = expand_user(path)
    file = local / "tokenizer.json" if local.is_dir() else local
    config: Path | None = file.with_name("tokenizer_config.json")
    if not file.is_file():
        if local.is_dir() or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", path) or path.endswith(".json"):
            raise ValueError(f"tokenizer.path={path}: {file} does not exist")
        file, config = _hub_files(path)
    return file, _configured_end_of_text(config, path) if config is not None and config.is_file() else None


def _configured_end_of_text(config: Path, path: str) -> str | None:
    """Read the `eos_token` of a tokenizer_config.json: a text, or an object with the text under `content`."""
    try:
        eos = json.loads(config.read_text("utf-8")).get("eos_token")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"tokenizer.path={path}: {config} is not a JSON object: {error}") from error
    name = eos.get("content") if isinstance(eos, dict) else eos
    if eos is None or isinstance(name, str):
        return name
    raise ValueError(
        f"tokenizer.path={path}: {config} says eos_token={json.dumps(eos)[:60]}, which is no token. It must be the "
        'token\'s text, such as "</s>", or an object that contains it, such as {"content": "</s>"}.'
    )


def _hub_files(hub_name: str) -> tuple[Path, Path | None]:
    """Find a hub repository's two files: in the local cache if they are there, so that a run works offline."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    try:
        file = try_to_load_from_cache(hub_name, "tokenizer.json")
        if isinstance(file, str):
            config = try_to_load_from_cache(hub_name, "tokenizer_config.json")
            return Path(file), Path(config) if isinstance(config, str) else None
        file = hf_hub_download(hub_name, "tokenizer.json")
    except (OSError, ValueError) as error:  # the hub's errors are OSErrors, a malformed name is a ValueError
        raise ValueError(
            f"tokenizer.path={hub_name} is not a local file or folder, and downloading its tokenizer.json from the "
            f"Hugging Face hub failed: {error}. Give a local tokenizer.json, or run once with a network."
        ) from error
    try:
        return Path(file), Path(hf_hub_download(hub_name, "tokenizer_config.json"))
    except OSError:
        return Path(file), None


def _find_end_of_text(special_tokens: dict[str, int], name: str | None, file: Path) -> str:
    """Return the special token that ends a document: the one the config names, or else the only usual name there is."""
    candidates = [known for known in ([name] if name else END_OF_TEXT_NAMES) if known in special_tokens]
    if len(candidates) == 1:
        return candidates[0]
    problem = f"tokenizer_config.json says eos_token={name!r}" if name else "no tokenizer_config.json names one"
    raise ValueError(
        f"{file}: cannot tell which special token ends a document. {problem}, and the special tokens are "
        f"{', '.join(special_tokens) or 'none at all'}. Put a tokenizer_config.json next to it that says "
        '{"eos_token": "<one of them>"}.'
    )


def _refuse_lost_letters(core: Any, path: str, file: Path) -> None:
    """ValueError if letters that the vocabulary lacks vanish: a BPE model without an unknown token drops them silently.

    All other models use their unknown token or raise. What the normalizer and the pre-tokenizer do to a letter is their
    own rule, so only the words that reach the model are checked.
    """
    from tokenizers.models import BPE

    if not isinstance(core.model, BPE) or core.model.unk_token is not None:
        return
    for letter in RARE_LETTERS:
        text = letter if core.normalizer is None else core.normalizer.normalize_str(letter)
        words = [text]
        if core.pre_tokenizer is not None:
            words = [word for word, _ in core.pre_tokenizer.pre_tokenize_str(text)]
        for word in words:
            # The offsets of a BPE model are the summed lengths of its tokens, so what is dropped is missing in them.
            kept = sum(end - start for start, end in (token.offsets for token in core.model.tokenize(word)))
            if kept < len(word.encode()):
                raise ValueError(
                    f"tokenizer.path={path}: {file} would lose text: its model silently drops the characters that its "
                    f"vocabulary lacks, such as U+{ord(letter):X}. Give the model an unk_token that is in its "
                    "vocabulary, or byte_fallback with the tokens <0x00> to <0xFF>; if it works on bytes "
                    "(ByteLevel), its vocabulary needs every byte: train it with "
                    "initial_alphabet=ByteLevel.alphabet()."
                )


def huggingface_encoder(tokenizer: Any, *, name: str, control: bool) -> Encode:
    """Encode with a `tokenizers.Tokenizer`, adding no tokens of its own (no BOS, no EOS).

    DocumentError for a document that it cannot encode, as where it needs an unknown token and has none.
    """
    tokenizer.encode_special_tokens = not control  # True: "encode special tokens' names as ordinary text"

    def encode(texts: pa.Array) -> tuple[Ids, Counts]:
        documents = texts.to_pylist()
        try:
            encoded = tokenizer.encode_batch_fast(documents, add_special_tokens=False)
        except Exception:  # tokenizers raises plain Exception, and does not say for which text
            _refuse_first_failing(tokenizer, documents, name)
            raise
        return flat([e.ids for e in encoded])

    return encode


def _refuse_first_failing(tokenizer: Any, documents: list[str], name: str) -> None:
    """DocumentError for the first document that cannot be encoded by itself."""
    for document, text in enumerate(documents):
        try:
            tokenizer.encode_batch_fast([text], add_special_tokens=False)
        except Exception as error:
            raise DocumentError(
                document,
                f"cannot be encoded by {name}: {error}. If the model has no token for unknown words, give it one that "
                "is in its vocabulary (unk_token; Unigram: unk_id); else remove the document from the corpus.",
            ) from error
