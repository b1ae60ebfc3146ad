"""Tokenizers of the Hugging Face kind: a `tokenizer.json`, read by the package `tokenizers`.

The text is encoded as it is: no token is added, nothing is truncated or padded, no merge is left out at random. A
document is never cut, since the rules in a tokenizer.json may depend on all of it. The hash covers the complete file in
a canonical form.

Cost: memory for each byte of a document, measured: WordLevel 43 to 79 bytes, Unigram 76 to 113, byte-level BPE and
WordPiece 117 to 153 (most where each byte is a token). So documents are encoded one at a time.
"""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.base.paths import expand_user
from pipeline.rules import MAX_TOKEN_ID
from pipeline.settings import TokenizerConfig
from pipeline.tokenizer.engines import Counts, DocumentError, Encode, Ids, flat
from pipeline.tokenizer.formats import TOKENIZER_JSON, library_errors, read_object, reason, recognise, recognise_folder
from pipeline.tokenizer.literal_model import load_literal, without_control
from pipeline.tokenizer.special_tokens import (
    END_OF_TEXT_NAMES,
    DocumentToken,
    choose_token,
    is_control,
    list_names,
    usual_end_of_text,
)
from pipeline.tokenizer.token_texts import TokenTexts
from pipeline.tokenizer.tokenizer import Tokenizer, identity_of

CONFIG = "tokenizer_config.json"
MAX_DOCUMENT_BYTES = 8 << 20  # at 153 bytes for a byte of text, a worker needs 1.3 GB at most
NAMED_TOKENS = ("eos", "bos", "unk", "sep", "pad", "cls", "mask")

# A letter each of Linear A, cuneiform and the hieroglyphs: hardly any vocabulary has them, and no normalizer that
# removes control characters or unassigned ones removes them.
RARE_LETTERS = "\U00010600\U00012000\U00013000"


def load_huggingface(section: TokenizerConfig) -> Tokenizer:
    """Load a tokenizer.json, a folder with one, or one of that name on the hub; ValueError if there is none."""
    try:
        import tokenizers
    except ImportError as error:
        raise ValueError("tokenizer=huggingface needs the package tokenizers: pip install tokenizers") from error

    path = section.path
    assert path is not None, "the section refuses huggingface without a path"
    key = f"tokenizer.path={path}"
    file, config_file = _find_files(path)
    config = read_object(config_file, key) if config_file is not None and config_file.is_file() else {}
    stated = {role: _named_token(config, f"{role}_token", config_file) for role in NAMED_TOKENS}
    document = _read_tokenizer(file, key)
    canonical = _dump(document)
    with library_errors(f"{key}: {file} cannot be loaded as a tokenizer.json"):
        core = tokenizers.Tokenizer.from_str(canonical)
    known = core.get_vocab(with_added_tokens=True)
    if not known:
        raise ValueError(f"{key}: {file} has an empty vocabulary")
    largest = max(known, key=lambda token: known[token])
    if known[largest] > MAX_TOKEN_ID:
        raise ValueError(
            f"{key}: {file} gives the token {largest!r} the ID {known[largest]}; IDs end at {MAX_TOKEN_ID}"
        )
    _refuse_lost_letters(core, key, file)

    control = _control_tokens(core, document, [*stated.values(), *_more_tokens(config)])
    end_token = _choose_end(section, core, control, stated["eos"], file)
    start_token = None
    if section.bos is not None:
        start_token = choose_token("tokenizer.bos", section.bos, special_tokens=control, **_lookups(core))
    for token in (end_token, start_token):
        if token and core.id_to_token(token.id) == token.name:
            control.setdefault(token.name, token.id)
    vocab_size = max(known[largest], end_token.id, start_token.id if start_token else 0) + 1

    name = f"huggingface:{path if not Path(path).exists() else Path(path).resolve().name}"
    renamed, changed = without_control(document, control)
    if section.special_text == "control":
        added = {one.content for one in core.get_added_tokens_decoder().values()}
        core.add_special_tokens([name for name in control if name not in added])
        engine = core
    else:
        engine = load_literal(renamed, control, _dump, core, f"{key}: {file}") if renamed else core
    unknown = _unknown_id(document, core)
    texts = TokenTexts(core, document, name, [end_token, start_token])
    facts: dict[str, Any] = {"begin_of_text": start_token.id} if start_token else {}
    if changed:  # earlier releases could make control tokens of text
        facts["control_from_text"] = False
    return Tokenizer(
        name=name,
        hash=identity_of(
            tokenizer_json=canonical.encode(),
            special_tokens=control,
            vocab_size=vocab_size,
            end_of_text=end_token.name,
            **facts,
        ),
        vocab_size=vocab_size,
        special_tokens=control,
        end_token=end_token,
        start_token=start_token,
        notes=(
            *_end_notes(section, control, end_token),
            *(() if start_token else _start_notes(core, config, stated["bos"])),
        ),
        engine="huggingface",
        special_text=section.special_text,
        cut_safe=False,
        max_document_bytes=MAX_DOCUMENT_BYTES,
        _encode=huggingface_encoder(engine, name=name, control=section.special_text == "control"),
        _never_from_text=frozenset({*control.values(), end_token.id} - ({unknown} - {end_token.id})),
        _token_texts=texts,
        _decode=texts.decode,
    )


def _dump(document: dict[str, Any]) -> str:
    return json.dumps(document, sort_keys=True, separators=(",", ":"))


def _read_tokenizer(file: Path, key: str) -> dict[str, Any]:
    """Read a tokenizer.json without its settings that would change the IDs from run to run or lose text."""
    document = read_object(file, key)
    known = recognise(_dump(document).encode())
    if known is not TOKENIZER_JSON:
        what = f"{known.remedy}. {file} is {known.what}" if known else f"{file} is no tokenizer.json: it has no model"
        raise ValueError(f"{key}: {what}")
    # Windows are cut and padded by this pipeline; a tokenizer that truncates would silently lose text.
    document |= {"truncation": None, "padding": None}
    # Dropout leaves out merges at random, for training: each run would have other IDs under the same hash.
    if "dropout" in document["model"]:
        document["model"]["dropout"] = None
    return document


def _find_files(path: str) -> tuple[Path, Path | None]:
    """Find the tokenizer.json at `path`, and the tokenizer_config.json next to it."""
    local = expand_user(path)
    file = local / "tokenizer.json" if local.is_dir() else local
    if file.is_file():
        return file, file.with_name(CONFIG)
    if local.is_dir() and (found := recognise_folder(local)):
        name, known = found
        raise ValueError(f"tokenizer.path={path}: {known.remedy}. The folder has no tokenizer.json, but {name}")
    if local.is_dir() or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", path) or path.endswith((".json", ".model", ".txt")):
        raise ValueError(f"tokenizer.path={path}: {file} does not exist")
    return _hub_files(path)


def _hub_files(hub_name: str) -> tuple[Path, Path | None]:
    """Find a hub repository's two files: in the local cache if they are there, so that a run works offline."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    try:
        file = try_to_load_from_cache(hub_name, "tokenizer.json")
        if isinstance(file, str):
            config = try_to_load_from_cache(hub_name, CONFIG)
            return Path(file), Path(config) if isinstance(config, str) else None
        file = hf_hub_download(hub_name, "tokenizer.json")
    except (OSError, ValueError) as error:  # the hub's errors are OSErrors, a malformed name is a ValueError
        raise ValueError(
            f"tokenizer.path={hub_name} is not a local file or folder, and downloading its tokenizer.json from the "
            f"Hugging Face hub failed: {reason(error)}. Give a local tokenizer.json, or run once with a network."
        ) from error
    try:
        return Path(file), Path(hf_hub_download(hub_name, CONFIG))
    except OSError:
        return Path(file), None


def _control_tokens(core: Any, document: dict[str, Any], stated: list[str | None]) -> dict[str, int]:
    """Return the control tokens: those that the tokenizer adds to its model, and those that its config states."""
    fallback = re.compile(r"<0x[0-9A-F]{2}>" if document["model"].get("byte_fallback") else r"(?!)")
    control = {
        one.content: token
        for token, one in core.get_added_tokens_decoder().items()
        if is_control(one.content, flagged=one.special) and not fallback.fullmatch(one.content)
    }
    for name in stated:
        token = core.token_to_id(name) if name else None
        if name and token is not None and is_control(name, flagged=True):
            control.setdefault(name, token)
    return control


def _named_token(config: dict[str, Any], role: str, config_file: Path | None) -> str | None:
    """Read a token of a tokenizer_config.json: a text, or an object with the text under `content`."""
    given = config.get(role)
    name = given.get("content") if isinstance(given, dict) else given
    if given is None or isinstance(name, str):
        return name
    raise ValueError(
        f"{config_file} says {role}={json.dumps(given)[:60]}, which is no token. It must be the token's text, such as "
        '"</s>", or an object that contains it, such as {"content": "</s>"}.'
    )


def _more_tokens(config: dict[str, Any]) -> list[str]:
    given = config.get("additional_special_tokens")
    return [one for one in given if isinstance(one, str)] if isinstance(given, list) else []


def _choose_end(
    section: TokenizerConfig, core: Any, control: dict[str, int], stated: str | None, file: Path
) -> DocumentToken:
    """Return the token that ends a document: what the user says, else the config, else the only usual name there is."""
    if section.eos != "auto":
        return choose_token("tokenizer.eos", section.eos, special_tokens=control, **_lookups(core))
    if stated in control:
        return DocumentToken(control[stated], stated, f"eos_token in {CONFIG}")
    usual = usual_end_of_text(control, f"the only usual name among the special tokens of {file.name}")
    if usual and not stated:
        return usual
    problem = f"{CONFIG} says eos_token={stated!r}" if stated else f"no {CONFIG} names one"
    raise ValueError(
        f"tokenizer.eos: give the token that ends a document, by name or ID: {file} does not say which it is. "
        f"{problem}, and its special tokens are {list_names(control) or 'none at all'}"
    )


def _lookups(core: Any) -> dict[str, Any]:
    return {"names": core.get_vocab, "find": core.token_to_id, "name_of": core.id_to_token}


def _end_notes(section: TokenizerConfig, control: dict[str, int], end: DocumentToken) -> tuple[str, ...]:
    """Say that the config's end-of-text token is not the one that vocabularies of this kind end a document with."""
    usual = [name for name in END_OF_TEXT_NAMES if name in control]
    if section.eos != "auto" or not usual or end.name in usual:
        return ()
    typed = " or ".join(f"""'tokenizer.eos="{name}"'""" for name in usual)
    return (f"{end.name} ends a turn of a chat in many models, and {' or '.join(usual)} a document: {typed} takes it",)


def _start_notes(core: Any, config: dict[str, Any], bos: str | None) -> tuple[str, ...]:
    """Say that the tokenizer itself would put a token before each text, which is done only with `tokenizer.bos`."""
    first = core.encode("", add_special_tokens=True).ids[:1]
    if config.get("add_bos_token") is True:
        where = f"{CONFIG} says add_bos_token=true"
    elif first and config.get("add_bos_token") is None:
        bos = core.id_to_token(first[0])
        where = f"its post-processor starts each text with {bos}"
    else:
        return ()
    return (f"{where}, but documents start without it; tokenizer.bos={bos or '<its name>'} adds it",)


def _unknown_id(document: dict[str, Any], core: Any) -> int | None:
    """Return the ID of the model's unknown token."""
    model = document["model"]
    if "unk_id" in model:
        return model["unk_id"] if isinstance(model["unk_id"], int) else None
    name = model.get("unk_token")
    return core.token_to_id(name) if isinstance(name, str) else None


def _refuse_lost_letters(core: Any, key: str, file: Path) -> None:
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
                    f"{key}: {file} would lose text: its model silently drops the characters that its "
                    f"vocabulary lacks, such as U+{ord(letter):X}. Give the model an unk_token that is in its "
                    "vocabulary, or byte_fallback with the tokens <0x00> to <0xFF>; if it works on bytes "
                    "(ByteLevel), its vocabulary needs every byte: train it with "
                    "initial_alphabet=ByteLevel.alphabet()."
                )


def huggingface_encoder(tokenizer: Any, *, name: str, control: bool) -> Encode:
    """Encode with a `tokenizers.Tokenizer`, adding no tokens of its own (no BOS, no EOS).

    One document at a time: what the library needs for a batch grows with all of it, and a batch would occupy all cores,
    where the workers of the write stage are the parallelism.

    DocumentError for a document that it cannot encode, as where it needs an unknown token and has none.
    """
    tokenizer.encode_special_tokens = not control  # True: "encode special tokens' names as ordinary text"

    def encode(texts: pa.Array) -> tuple[Ids, Counts]:
        documents = []
        for number, text in enumerate(texts):
            try:
                with library_errors(f"cannot be encoded by {name}"):
                    (encoded,) = tokenizer.encode_batch_fast([text.as_py()], add_special_tokens=False)
            except ValueError as error:
                raise DocumentError(
                    number,
                    f"{error}. If the model has no token for unknown words, give it one that is in its vocabulary "
                    "(unk_token; Unigram: unk_id); else remove the document from the corpus.",
                ) from error
            documents.append(np.array(encoded.ids, np.uint32))
        return flat(documents)

    return encode
