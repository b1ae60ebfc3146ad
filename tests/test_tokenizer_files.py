"""Files that people have in hand: what is said of them, and the texts of tokens."""

import json
import subprocess
import sys

import pytest

from pipeline.tokenizer.load import load_tokenizer
from pipeline.tokenizer.rank_files import PACKAGED_RANKS

tokenizers = pytest.importorskip("tokenizers")
from tokenizers import decoders, models, normalizers, pre_tokenizers  # noqa: E402 - skipped without it

FLAGS = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
LONGEST = 600

SENTENCEPIECE = b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02\n\x0c\n\x03<s>\x15\x00\x00\x00\x00\x18\x03"
TEKKEN = json.dumps({"config": {"pattern": "x"}, "vocab": [{"rank": 0, "token_bytes": "AA=="}]}).encode()
FILES = {  # content, what it is, what to do with it
    "tokenizer.model": (SENTENCEPIECE, "a SentencePiece model", "AutoTokenizer"),
    "tekken.json": (TEKKEN, "a tekken file", "take the tokenizer.json of the same model"),
    "vocab.json": (b'{"a": 0, "b": 1}', "the vocab.json of a GPT-2 tokenizer", "ByteLevelBPETokenizer"),
    "merges.txt": (b"#version: 0.2\na b\n", "the merges.txt of a GPT-2 tokenizer", "ByteLevelBPETokenizer"),
    "vocab.txt": (b"[PAD]\n[UNK]\nthe\n", "the vocab.txt of a BERT tokenizer", "BertWordPieceTokenizer"),
    "my.tiktoken": (PACKAGED_RANKS.read_bytes(), "a rank file", "tokenizer=tiktoken_file"),
    "tokenizer_config.json": (b'{"eos_token": "</s>"}', "a tokenizer_config.json", "give the tokenizer.json next"),
    "page.json": (b"<!DOCTYPE html><html>", "a web page", "download the file itself"),
    "pointer.json": (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer", "git lfs pull"),
    "packed.json": (b"\x1f\x8b\x08\x00", "a compressed file", "unpack it"),
}


def refusal(**options):
    with pytest.raises(ValueError, match=r"^tokenizer\.\w+") as caught:
        load_tokenizer(**options)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) <= LONGEST
    return message


@pytest.mark.parametrize("name", FILES)
def test_another_file_is_named_with_the_way_to_one_that_can_be_used(name, tmp_path):
    content, what, remedy = FILES[name]
    (tmp_path / name).write_bytes(content)
    message = refusal(tokenizer="huggingface", path=str(tmp_path / name))
    assert what in message
    assert message.index(remedy) < message.index(what)
    if name != "my.tiktoken":
        assert what in refusal(tokenizer="tiktoken_file", path=str(tmp_path / name), pattern="gpt2", eos=300)


@pytest.mark.parametrize(
    "name", ["tokenizer.model", "tekken.json", "vocab.json", "merges.txt", "vocab.txt", "my.tiktoken"]
)
def test_a_folder_without_a_tokenizer_json_says_what_it_has(name, tmp_path):
    (tmp_path / name).write_bytes(FILES[name][0])
    message = refusal(tokenizer="huggingface", path=str(tmp_path))
    assert FILES[name][2] in message
    assert message.endswith(f"The folder has no tokenizer.json, but {name}")


def test_a_tokenizer_json_given_as_a_rank_file_is_sent_to_huggingface(tmp_path):
    tokenizers.Tokenizer(models.BPE()).save(str(tmp_path / "tokenizer.json"))
    message = refusal(tokenizer="tiktoken_file", path=str(tmp_path / "tokenizer.json"), pattern="gpt2", eos=300)
    assert "use tokenizer=huggingface for it" in message


def test_a_message_lists_the_first_of_many_special_tokens(tmp_path):
    core = tokenizers.Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    core.add_special_tokens([f"<|reserved_{number}|>" for number in range(1000)])
    core.save(str(tmp_path / "many.json"))
    message = refusal(tokenizer="huggingface", path=str(tmp_path / "many.json"))
    assert message.startswith("tokenizer.eos: give the token that ends a document")
    assert message.endswith("<|reserved_4|> and 995 more")


def word_level(**ids):
    return {
        "version": "1.0",
        "added_tokens": [{"id": 0, "content": "</s>", "special": True, **FLAGS}],
        "model": {"type": "WordLevel", "vocab": {"</s>": 0, "<unk>": 1, **ids}, "unk_token": "<unk>"},
    }


DEEP = "[" * 100_000
DAMAGED = {
    "nested too deeply": ("tokenizer.json", DEEP),
    "a config nested too deeply": ("tokenizer_config.json", DEEP),
    "an ID beyond int32": ("tokenizer.json", json.dumps(word_level(a=2**31))),
    "an ID beyond uint32": ("tokenizer.json", json.dumps(word_level(a=2**33))),
    "a negative ID": ("tokenizer.json", json.dumps(word_level(a=-5))),
    "no model": ("tokenizer.json", "{}"),
    "an unknown model": ("tokenizer.json", json.dumps({"model": {"type": "Magic", "vocab": {"a" * 5000: 0}}})),
    "an empty vocabulary": (
        "tokenizer.json",
        json.dumps({"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": []}}),
    ),
    "no text": ("tokenizer.json", "\udcff\udcfe"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_tokenizer_is_one_line(kind, tmp_path):
    name, content = DAMAGED[kind]
    (tmp_path / "tokenizer.json").write_text(json.dumps(word_level()))
    (tmp_path / name).write_bytes(content.encode("utf-8", "surrogateescape"))
    assert str(tmp_path) in refusal(tokenizer="huggingface", path=str(tmp_path))


@pytest.mark.parametrize("token", [-1, 2**31, 2**40])
def test_an_id_that_no_tokenizer_has_is_refused(token, tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps(word_level()))
    for loaded in (load_tokenizer("huggingface", path=str(tmp_path)), load_tokenizer("gpt2"), load_tokenizer("bytes")):
        with pytest.raises(ValueError, match=f"the ID {token} is not in the vocabulary"):
            loaded.decode([token])
        with pytest.raises(ValueError, match=f"the ID {token} is not in the vocabulary"):
            loaded.decode_pieces([token])


# ---- The texts of tokens


def saved(folder, core):
    core.add_special_tokens(["<unk>", "</s>"])
    core.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    return load_tokenizer("huggingface", path=str(folder))


def test_the_space_of_a_metaspace_token_is_shown(tmp_path):
    vocab = [("<unk>", 0.0), ("</s>", -1.0), ("\u2581the", -2.0), ("the", -2.0), ("m", -2.0)]
    core = tokenizers.Tokenizer(models.Unigram(vocab, unk_id=0))
    core.pre_tokenizer, core.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    loaded = saved(tmp_path, core)
    ids = loaded.encode("them the the")
    assert loaded.decode_pieces(ids) == [" the", "m", " the", " the"]
    assert loaded.decode_pieces([3, 1]) == ["the", "</s>"]
    assert "".join(loaded.decode_pieces(ids)).removeprefix(" ") == loaded.decode(ids) == "them the the"


def test_a_byte_is_shown_as_a_byte(tmp_path):
    fallback = {f"<0x{byte:02X}>": byte + 3 for byte in range(256)}
    vocab = {"<unk>": 0, "</s>": 1, "\u2581": 2, **fallback, "a": 259, "b": 260}
    core = tokenizers.Tokenizer(models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True))
    core.normalizer = normalizers.Replace(" ", "\u2581")
    core.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    loaded = saved(tmp_path, core)
    ids = loaded.encode("a \xe4b")
    assert loaded.decode_pieces(ids) == ["a", " ", "\\xc3", "\\xa4", "b"]
    assert loaded.decode(ids) == "a \xe4b"


def test_a_byte_level_token_may_be_half_a_character(tmp_path):
    core = tokenizers.Tokenizer(
        models.BPE({b: n for n, b in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, [])
    )
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    loaded = saved(tmp_path, core)
    ids = loaded.encode("a \xe4")
    assert loaded.decode_pieces(ids) == ["a", " ", "\\xc3", "\\xa4"]
    assert loaded.decode(ids) == "a \xe4"


def test_a_wordpiece_token_continues_a_word_or_starts_one(tmp_path):
    core = tokenizers.Tokenizer(
        models.WordPiece({"<unk>": 0, "</s>": 1, "un": 2, "##able": 3, "the": 4}, unk_token="<unk>")
    )
    core.pre_tokenizer, core.decoder = pre_tokenizers.Whitespace(), decoders.WordPiece()
    loaded = saved(tmp_path, core)
    ids = loaded.encode("the unable")
    assert loaded.decode_pieces(ids) == [" the", " un", "able"]
    assert "".join(loaded.decode_pieces(ids)).removeprefix(" ") == loaded.decode(ids) == "the unable"


# ---- Memory and threads

MEASURE = """
import resource, sys, time
from pipeline.tokenizer.load import load_tokenizer
loaded = load_tokenizer("huggingface", path=sys.argv[1])
text = "The cat sat on the mat, and 12 dogs ran. " * 10
loaded.encode(text)
before = resource.getrusage(resource.RUSAGE_SELF)
start = time.perf_counter()
loaded.encode_batch([text * int(sys.argv[2])] * int(sys.argv[3]))
taken, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
print(after.ru_maxrss - before.ru_maxrss, len(text) * int(sys.argv[2]), after.ru_utime - before.ru_utime, taken)
"""


def measure(folder, length, count):
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(folder), str(length), str(count)],
        capture_output=True,
        text=True,
        check=True,
    )
    kilobytes, size, cpu, taken = map(float, done.stdout.split())
    return kilobytes * (1 if sys.platform == "darwin" else 1024) / size, cpu / taken


@pytest.mark.slow
def test_many_documents_take_the_memory_of_one_and_one_thread(tmp_path):
    core = tokenizers.Tokenizer(
        models.BPE({b: n for n, b in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, [])
    )
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    saved(tmp_path, core)
    one, _ = measure(tmp_path, 2000, 1)
    many, threads = measure(tmp_path, 2000, 8)
    assert one < 400  # each byte is a token here: no vocabulary takes more
    assert many < 2 * one + 100  # the IDs of all of them are kept
    assert threads < 1.3
