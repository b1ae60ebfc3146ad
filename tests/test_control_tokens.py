"""Control tokens never come out of text, with any kind of tokenizer; which tokens start and end a document."""

import hashlib
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import ConfigError, CorpusConfig, ShardLoader, TokenizerConfig, WindowConfig, read_manifest, write_shards
from pipeline.tokenizer.engines import DocumentError
from pipeline.tokenizer.load import load_tokenizer
from pipeline.tokenizer.rank_files import PUBLISHED, Published, canonical_rank_file
from pipeline.tokenizer.special_tokens import is_control
from pipeline.tokenizer.tokenizer import identity_of

tokenizers = pytest.importorskip("tokenizers")

CONTROL = ["<unk>", "</s>", "<|user|>", "<think>", "[SEP]"]  # the last three are not flagged special
PLAIN = ["  ", "\n\n", "added"]
LETTERS = [*"abcdehnstk</>|[]SEP", "\u00e9", "\u4e00"]
BYTES = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
FALLBACK = [f"<0x{byte:02X}>" for byte in range(256)]

METASPACE = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True}
SPLIT = {"type": "WhitespaceSplit"}
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
NFKC = {"type": "NFKC"}


def vocab_of(tokens):
    return {token: index for index, token in enumerate([*CONTROL, *tokens])}


def merges_of(words):
    """The merges that make each word from its letters, and all tokens on the way."""
    merges = list(dict.fromkeys((word[:n], word[n]) for word in words for n in range(1, len(word))))
    return [list(merge) for merge in merges], list(dict.fromkeys(left + right for left, right in merges))


MERGES, MERGED = merges_of(["</s>", "<think>", "the", "[SEP]"])
BYTE_WORDS = [*BYTES, *(token for token in MERGED if token not in CONTROL)]
KINDS = {  # model, pre-tokenizer, normalizer
    "Unigram": (
        {
            "type": "Unigram",
            "unk_id": 0,
            "vocab": [[token, -1.0] for token in vocab_of(["\u2581", "\u2581the"])] + [[c, -3.0] for c in LETTERS],
        },
        METASPACE,
        NFKC,
    ),
    "Unigram with byte_fallback": (
        {
            "type": "Unigram",
            "unk_id": 0,
            "byte_fallback": True,
            "vocab": [[token, -1.0] for token in vocab_of(["\u2581", *FALLBACK])] + [[c, -3.0] for c in LETTERS],
        },
        METASPACE,
        None,
    ),
    "WordLevel": ({"type": "WordLevel", "vocab": vocab_of(["the", "a", "b"]), "unk_token": "<unk>"}, SPLIT, None),
    "WordPiece": (
        {
            "type": "WordPiece",
            "vocab": vocab_of([*LETTERS, *(f"##{c}" for c in LETTERS)]),
            "unk_token": "<unk>",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
        },
        SPLIT,
        None,
    ),
    "byte-level BPE": ({"type": "BPE", "vocab": vocab_of(BYTE_WORDS), "merges": MERGES}, BYTE_LEVEL, None),
    "byte-level BPE that ignores merges": (
        {"type": "BPE", "vocab": vocab_of(BYTE_WORDS), "merges": [], "ignore_merges": True},
        SPLIT,
        {"type": "ByteLevel"},
    ),
    "BPE with byte_fallback": (
        {
            "type": "BPE",
            "vocab": vocab_of([*FALLBACK, "\u2581", *dict.fromkeys([*LETTERS, *"<>/|[]SEPthiks", *BYTE_WORDS[256:]])]),
            "merges": MERGES,
            "unk_token": "<unk>",
            "byte_fallback": True,
            "fuse_unk": True,
        },
        METASPACE,
        None,
    ),
}
FLAGS = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)


def document_of(kind):
    """A tokenizer.json: its model knows all control tokens, and adds vocabulary that is not special."""
    model, pre_tokenizer, normalizer = KINDS[kind]
    count = len(model["vocab"])
    added = [{"id": n, "content": name, "special": n < 2, **FLAGS} for n, name in enumerate(CONTROL)]
    added += [{"id": count + n, "content": name, "special": False, **FLAGS} for n, name in enumerate(PLAIN)]
    return {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "model": model,
    }


def load(folder, document, config=None, **options):
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(document), "utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"} | (config or {})), "utf-8")
    return load_tokenizer("huggingface", path=str(folder), **options)


def without_pieces(document):
    """The library's own tokenizer of the same model without the control tokens; its unknown token has no name."""
    model = json.loads(json.dumps(document["model"]))
    nameless = dict.fromkeys(CONTROL) | {"<unk>": "\ue000unknown"}
    if model["type"] == "Unigram":  # its IDs are positions, so nothing can be taken out
        model["vocab"] = [
            [f"\ue000{n}" if piece in CONTROL else piece, s] for n, (piece, s) in enumerate(model["vocab"])
        ]
    else:
        model["vocab"] = {nameless.get(name, name): n for name, n in model["vocab"].items() if nameless.get(name, name)}
        model["merges"] = [merge for merge in model.get("merges", []) if "".join(merge) not in CONTROL]
        if "merges" not in document["model"]:
            del model["merges"]
        if model.get("unk_token"):
            model["unk_token"] = "\ue000unknown"
    core = tokenizers.Tokenizer.from_str(json.dumps({**document, "model": model, "added_tokens": []}))
    count = len(document["model"]["vocab"])
    # The library numbers what is added from the model's size, so fillers take the numbers of what is gone.
    core.add_tokens([f"\ue000filler{n}" for n in range(count - core.get_vocab_size())])
    core.add_tokens(PLAIN)
    assert core.token_to_id(PLAIN[0]) == count
    return lambda text: core.encode(text, add_special_tokens=False).ids


EXOTIC = ["\U0002b73a", "\u1c89", "\U0001fae8", "\U00010600", "\u200b", "\ufeff", "\x00", "\uff1c/s\uff1e", "e\u0301"]
SNIPPETS = [*CONTROL, *PLAIN, *EXOTIC, *LETTERS, " ", "\t", "the", "</", "s>", "<|", "user", "|>", "<0x41>", "\u2581"]
texts = st.lists(st.sampled_from(SNIPPETS), max_size=12).map("".join) | st.text(max_size=12)


@pytest.fixture(scope="module", params=KINDS)
def kind(request, tmp_path_factory):
    """One tokenizer with each `special_text`, and the model without its control tokens."""
    document, folder = document_of(request.param), tmp_path_factory.mktemp("kind")
    loaded = {name: load(folder, document, special_text=name) for name in ("literal", "control", "error")}
    return loaded, without_pieces(document), tokenizers.Tokenizer.from_str(json.dumps(document))


def test_a_control_name_in_the_text_is_text(kind):
    loaded, reference, _ = kind
    for text in ["struck <s>out</s> text", "x <|user|> y", "the </s>", "<think>", "a<unk>b", "[SEP]  added", "</s>"]:
        assert loaded["literal"].encode(text) == reference(text), text


@settings(max_examples=150, deadline=None)
@given(text=texts)
def test_literal_gives_the_ids_of_the_model_without_its_control_tokens(kind, text):
    loaded, reference, _ = kind
    ids = loaded["literal"].encode(text)
    assert ids == reference(text)
    assert not set(ids) & set(range(1, len(CONTROL)))


@settings(max_examples=60, deadline=None)
@given(text=texts)
def test_control_gives_the_ids_of_the_library_and_names_are_counted_and_refused(kind, text):
    loaded, _, core = kind
    assert loaded["control"].encode(text) == core.encode(text, add_special_tokens=False).ids
    found = sum(text.count(name) for name in CONTROL)
    assert loaded["literal"].count_special([text]).tolist() == [found]
    if found:
        with pytest.raises(DocumentError, match="contains the special token"):
            loaded["error"].encode(text)
    else:
        assert loaded["error"].encode(text) == loaded["literal"].encode(text)


def test_added_white_space_and_words_are_vocabulary_in_every_setting(kind):
    loaded, _, core = kind
    for one in loaded.values():
        assert set(one.special_tokens) == set(CONTROL)
        assert core.token_to_id("  ") in one.encode("a  b")
        assert core.token_to_id("added") in one.encode("added")


@pytest.mark.parametrize(
    ("text", "flagged", "expected"),
    [
        ("<|user|>", False, True),
        ("<think>", False, True),
        ("\uff5cUser\uff5c", False, True),
        ("PAD", True, True),
        ("PAD", False, False),
        ("   ", True, False),
        ("\n\n", False, False),
        ("\u2581\u2581", False, False),
        ("New York 2", False, False),
        ("\u0915\u094d\u0937", False, False),
        ("\x00", False, True),
    ],
)
def test_which_added_tokens_are_control_tokens(text, flagged, expected):
    assert is_control(text, flagged=flagged) is expected


def test_a_token_that_only_the_config_names_is_a_control_token(tmp_path):
    document = document_of("Unigram")
    document["added_tokens"] = [one for one in document["added_tokens"] if one["content"] != "</s>"]
    document["model"]["vocab"][4][0] = "the"  # </s> keeps its ID
    literal = load(tmp_path / "t", document)
    assert literal.eos == 1
    assert 1 not in literal.encode("out</s>")
    assert load(tmp_path / "t", document, special_text="control").encode("t</s>")[-1] == 1


def test_a_single_letter_that_is_a_control_token_is_refused_where_the_model_would_drop_it(tmp_path):
    document = {
        "version": "1.0",
        "added_tokens": [
            {"id": 0, "content": "!", "special": True, **FLAGS},
            {"id": 256, "content": "</s>", "special": True, **FLAGS},
        ],
        "pre_tokenizer": BYTE_LEVEL,
        "model": {"type": "BPE", "vocab": {byte: n for n, byte in enumerate(BYTES)}, "merges": []},
    }
    loaded = load(tmp_path / "t", document)
    assert len(loaded.encode("fine")) == 4
    with pytest.raises(DocumentError, match=r"document 1 of this batch contains text .* control token '!' \(0\)"):
        loaded.encode_batch(["fine", "stop!", "fine"])


def test_an_unknown_token_that_ends_documents_too_is_refused_where_a_text_needs_it(tmp_path):
    document = document_of("WordLevel")
    loaded = load(tmp_path / "t", document, {"eos_token": "<unk>"})
    assert loaded.encode("the a b") == [5, 6, 7]
    with pytest.raises(DocumentError, match=r"only as its control token '<unk>' \(0\)"):
        loaded.encode("the end")


def test_a_tokenizer_that_earlier_releases_encoded_otherwise_has_another_hash(tmp_path):
    hashes, released = {}, {}
    for ignore_merges in (False, True):
        document = {
            "version": "1.0",
            "added_tokens": [{"id": 256, "content": "</s>", "special": True, **FLAGS}],
            "pre_tokenizer": BYTE_LEVEL,
            "model": {
                "type": "BPE",
                "vocab": {byte: n for n, byte in enumerate(BYTES)} | {"</s>": 256},
                "merges": [],
                "ignore_merges": ignore_merges,
            },
        }
        hashes[ignore_merges] = load(tmp_path / "t", document).hash
        canonical = json.dumps(
            document | {"truncation": None, "padding": None}, sort_keys=True, separators=(",", ":")
        ).encode()
        released[ignore_merges] = identity_of(
            tokenizer_json=canonical, special_tokens={"</s>": 256}, vocab_size=257, end_of_text="</s>"
        )
    assert hashes[False] == released[False]  # no text could spell its end-of-text token
    assert hashes[True] != released[True]


# ---- The tokens that start and end a document

BYTE_RANKS = {bytes([byte]): byte for byte in range(256)}


@pytest.fixture
def rank_file(tmp_path):
    path = tmp_path / "mine.tiktoken"
    path.write_bytes(canonical_rank_file(BYTE_RANKS))
    return str(path)


def test_a_rank_file_that_nobody_published_asks_which_token_ends_a_document(rank_file):
    with pytest.raises(ValueError, match=r"^tokenizer.eos: give the ID .*; 256 is the first free one") as caught:
        load_tokenizer("tiktoken_file", path=rank_file, pattern="cl100k")
    assert "\n" not in str(caught.value)
    for options in ({"eos": 256}, {"special_tokens": {"<|endoftext|>": 256}}):
        loaded = load_tokenizer("tiktoken_file", path=rank_file, pattern="cl100k", **options)
        assert (loaded.eos, loaded.bos, loaded.vocab_size, loaded.special_tokens) == (
            256,
            None,
            257,
            {"<|endoftext|>": 256},
        )


def test_an_id_beyond_the_ranks_makes_the_vocabulary_larger(rank_file):
    names = {"<|begin_of_text|>": 256, "<|end_of_text|>": 257, "<|eot_id|>": 265}
    loaded = load_tokenizer(
        "tiktoken_file", path=rank_file, pattern="cl100k", special_tokens=names, bos="<|begin_of_text|>"
    )
    assert (loaded.eos, loaded.bos, loaded.vocab_size) == (257, 256, 266)
    assert loaded.end_token.source == "the only usual name in tokenizer.special_tokens"
    assert loaded.decode([97, 257]) == "a<|end_of_text|>"
    far = load_tokenizer("tiktoken_file", path=rank_file, pattern="cl100k", eos=1000)
    assert (far.eos, far.vocab_size, far.decode([1000])) == (1000, 1001, "<|endoftext|>")


def test_special_tokens_that_contradict_the_ranks_are_refused(rank_file):
    for names in ({"<|x|>": 5}, {"a": 300}):
        with pytest.raises(ValueError, match=r"tokenizer.special_tokens: contradicts|must be a special token"):
            load_tokenizer("tiktoken_file", path=rank_file, pattern="cl100k", eos=400, special_tokens=names)
    with pytest.raises(ConfigError, match=r"contradicts the vocabulary, which has 50256"):
        load_tokenizer("gpt2", special_tokens={"<|endoftext|>": 60000})


def test_special_tokens_may_be_json_as_a_command_line_needs(rank_file, cli, tmp_path):
    (tmp_path / "in.txt").write_text("some text")
    done = cli(
        "stages=write",
        "corpus=text",
        "corpus.path=in.txt",
        "tokenizer=tiktoken_file",
        f"tokenizer.path={rank_file}",
        "tokenizer.pattern=gpt2",
        'tokenizer.special_tokens="{\\"<|end_of_text|>\\": 300}"',
        "window.max_length=4",
    )
    assert done.returncode == 0, done.stderr
    assert "<|end_of_text|> (300)" in done.stdout
    with pytest.raises(ConfigError, match=r"tokenizer.special_tokens: must map names to IDs"):
        TokenizerConfig(name="tiktoken_file", path="x", special_tokens="{")


def test_a_published_rank_file_is_known_by_its_hash(rank_file, monkeypatch):
    digest = hashlib.sha256(canonical_rank_file(BYTE_RANKS)).hexdigest()
    special = {"<|begin_of_text|>": 256, "<|end_of_text|>": 257, "<|eot_id|>": 511}
    monkeypatch.setitem(PUBLISHED, "known", Published(digest, "cl100k", special, gigatoken=False))
    loaded = load_tokenizer("tiktoken_file", path=rank_file, eos="auto")
    assert (loaded.name, loaded.eos, loaded.vocab_size) == ("known", 257, 512)
    assert loaded.end_token.source == "the published encoding known"


def test_metas_rank_files_have_their_own_special_tokens():
    llama3, llama4 = PUBLISHED["llama3"].special_tokens, PUBLISHED["llama4"].special_tokens
    assert sorted(llama3.values()) == [*range(128000, 128256)]
    assert sorted(llama4.values()) == [*range(200000, 202048)]
    assert [llama3[f"<|{name}|>"] for name in ("begin_of_text", "end_of_text", "eot_id")] == [128000, 128001, 128009]
    assert [llama4[f"<|{name}|>"] for name in ("begin_of_text", "end_of_text", "eot")] == [200000, 200001, 200008]


@pytest.mark.parametrize("name", ["gpt2", "bytes"])
def test_a_token_may_be_given_by_its_name_or_its_id(name):
    auto = load_tokenizer(name)
    for eos in ("<|endoftext|>", auto.eos):
        chosen = load_tokenizer(name, eos=eos)
        assert (chosen.eos, chosen.hash, chosen.end_token.source) == (auto.eos, auto.hash, "tokenizer.eos")
    beyond = load_tokenizer(name, eos=auto.vocab_size + 4, bos=auto.eos)
    assert (beyond.eos, beyond.bos, beyond.vocab_size) == (auto.vocab_size + 4, auto.eos, auto.vocab_size + 5)
    assert len({auto.hash, beyond.hash, load_tokenizer(name, bos=auto.eos).hash}) == 3
    with pytest.raises(ConfigError, match=r"tokenizer.bos: no token has this name; the nearest are '<\|endoftext\|>'"):
        load_tokenizer(name, bos="<|endoftxt|>")


def test_an_ordinary_token_that_ends_documents_must_not_come_out_of_a_text():
    loaded = load_tokenizer("bytes", eos=10)
    assert loaded.encode("one line") == [*b"one line"]
    with pytest.raises(DocumentError, match=r"document 1 .* control token '\\n' \(10\)"):
        loaded.encode_batch(["one line", "two\nlines"])


def test_a_huggingface_tokenizer_takes_its_end_from_the_config_a_usual_name_or_the_user(tmp_path):
    document = document_of("byte-level BPE")
    assert load(tmp_path / "t", document).end_token == (1, "</s>", "eos_token in tokenizer_config.json")
    usual = load(tmp_path / "t", document, {"eos_token": None}).end_token
    assert usual == (1, "</s>", "the only usual name among the special tokens of tokenizer.json")
    assert load(tmp_path / "t", document, eos="<think>").end_token == (3, "<think>", "tokenizer.eos")
    beyond = load(tmp_path / "t", document, eos=5000, bos="[SEP]")
    assert (beyond.eos, beyond.bos, beyond.vocab_size) == (5000, 4, 5001)
    assert beyond.decode([*beyond.encode("the"), 5000]) == "the<|endoftext|>"
    with pytest.raises(ConfigError, match=r"tokenizer.eos: no token has this name; the nearest are '</s>'"):
        load(tmp_path / "t", document, eos="</S>")


def test_an_end_token_that_may_end_a_turn_is_said_with_the_one_that_ends_a_document(tmp_path):
    document = document_of("byte-level BPE")
    chat = load(tmp_path / "t", document, {"eos_token": "<think>"})
    assert chat.end_token == (3, "<think>", "eos_token in tokenizer_config.json")
    assert chat.notes == (
        "<think> ends a turn of a chat in many models, and </s> a document: 'tokenizer.eos=\"</s>\"' takes it",
    )
    assert load(tmp_path / "t", document, {"eos_token": "<think>"}, eos="<think>").notes == (), "the user's own choice"
    assert load(tmp_path / "t", document, {"eos_token": "</s>"}).notes == ()


def test_a_config_that_asks_for_a_start_token_is_reported_unless_there_is_one(tmp_path):
    document = document_of("byte-level BPE")
    config = {"add_bos_token": True, "bos_token": "[SEP]"}
    (note,) = load(tmp_path / "t", document, config).notes
    assert (
        note
        == "tokenizer_config.json says add_bos_token=true, but documents start without it; tokenizer.bos=[SEP] adds it"
    )
    assert load(tmp_path / "t", document, config, bos="[SEP]").notes == ()
    template = {"SpecialToken": {"id": "[SEP]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    document["post_processor"] = {
        "type": "TemplateProcessing",
        "single": list(template),
        "pair": list(template),
        "special_tokens": {"[SEP]": {"id": "[SEP]", "ids": [4], "tokens": ["[SEP]"]}},
    }
    (note,) = load(tmp_path / "t", document).notes
    assert note.startswith("its post-processor starts each text with [SEP]")
    assert load(tmp_path / "t", document, {"add_bos_token": False}).notes == ()


def test_each_document_starts_and_ends_with_its_tokens_and_the_manifest_says_which(tmp_path):
    reports = {}
    for name, options in {"plain": {}, "bos": {"bos": 256}, "both": {"bos": 300, "eos": 301}}.items():
        reports[name] = write_shards(
            tmp_path / name,
            corpus=["ab", "c"],
            tokenizer=TokenizerConfig(name="bytes", **options),
            window=WindowConfig(max_length=16, tail="pad"),
            cache=tmp_path / "cache",
        )
        assert reports[name].chunks_made == 1  # tokens that were made with others are never used
    rows = {name: pq.read_table(tmp_path / name / "data").to_pylist()[0] for name in reports}
    ids = {
        name: [*row["input_ids"][: row["length"]], row["target_ids"][row["length"] - 1]] for name, row in rows.items()
    }
    assert ids == {
        "plain": [97, 98, 256, 99],
        "bos": [256, 97, 98, 256, 256, 99],
        "both": [300, 97, 98, 301, 300, 99],
    }
    told = read_manifest(tmp_path / "both").tokenizer
    assert told["bos"] == {"id": 300, "name": "<|token_300|>", "source": "tokenizer.bos"}
    assert told["eos"] == {"id": 301, "name": "<|token_301|>", "source": "tokenizer.eos"}
    assert read_manifest(tmp_path / "plain").tokenizer["bos"] is None
    assert told["vocab_size"] == 302


def test_a_long_document_in_segments_has_one_start_token(tmp_path):
    text = "word and word " * 400_000
    (tmp_path / "long.txt").write_text(text)
    write_shards(
        tmp_path / "ds",
        corpus=CorpusConfig(name="text", path=str(tmp_path / "long.txt")),
        tokenizer=TokenizerConfig(name="bytes", bos=300),
        window=WindowConfig(max_length=4096),
        cache=tmp_path / "cache",
    )
    ids = np.concatenate(list(pq.read_table(tmp_path / "ds" / "data")["input_ids"].to_numpy()))
    assert np.flatnonzero(ids == 300).tolist() == [0]
    assert bytes(ids[1:].astype(np.uint8)) == text.encode()[: len(ids) - 1]


@pytest.mark.parametrize("options", [{"bos": 256}, {"bos": 300}])
def test_a_start_token_has_position_0_and_each_document_its_own_number(tmp_path, options):
    documents = ["ab", "c", "def"]
    write_shards(
        tmp_path / "ds",
        corpus=documents,
        tokenizer=TokenizerConfig(name="bytes", **options),
        window=WindowConfig(max_length=10),
        cache=tmp_path / "cache",
    )
    (batch,) = ShardLoader(tmp_path / "ds", batch_size=1, shuffle="none", document_ids=True)
    # start, a, b, end, start, c, end, start, d, e
    assert batch.input_ids[0, [0, 4, 7]].tolist() == [options["bos"]] * 3
    assert batch.document_ids.tolist() == [[0, 0, 0, 0, 1, 1, 1, 2, 2, 2]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 0, 1, 2, 0, 1, 2]]
