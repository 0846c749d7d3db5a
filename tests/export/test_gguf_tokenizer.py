"""A GGUF file's tokenizer has the ids of the tokenizer that it was made from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from checkpoint_files import gpt2_config, gpt2_tensors, write_tokenizer
from gguf_files import header, tokenizer_entries, write_gguf
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketlm.export.checkpoint import open_checkpoint
from pocketlm.export.errors import CheckpointError
from pocketlm.export.gguf.header import read_header
from pocketlm.export.gguf.tokenizer import end_ids, tokenizer_source
from pocketlm.export.gguf.words import WORDS
from pocketlm.export.tokenizers import TokenizerSource, find_tokenizer
from pocketlm.export.tokenizers.opening import open_source

PLAIN, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
TEXTS = [
    "The quick brown fox jumps over the lazy dog, and then it's 1234567 o'clock; we'LL see.",
    "안녕하세요 素早い茶色の狐。👨\u200d👩\u200d👧 e\u0301 naïve ½",
    "def f(x):\n    if x:\n\t\treturn {'a': [1, 2.5e-3]}\n\n\n    return None\r\n",
    "  two leading spaces,   runs    of     spaces \t\t tabs \n\n\n newlines \r\n  ",
    "\x00\x07\x7f",
    "",
    " ",
]
texts = st.one_of(
    st.text(max_size=60),
    st.text(alphabet=" \n\tab1'.,Zé漢🙂", max_size=60),
    st.sampled_from(TEXTS),
)


def source(tmp_path: Path, **entries: Any) -> TokenizerSource:
    """The tokenizer of a file with these entries under "tokenizer.ggml."."""
    named = {f"tokenizer.ggml.{name}": value for name, value in entries.items()}
    (tmp_path / "t.gguf").write_bytes(header(named))
    found = tokenizer_source(read_header(tmp_path / "t.gguf"))
    assert found is not None
    return found


def library(tmp_path: Path, **entries: Any) -> tokenizers.Tokenizer:
    return open_source(source(tmp_path, **entries))


# --- byte-level ---------------------------------------------------------------------------------


def byte_level(tmp_path: Path, vocab_size: int = 400) -> dict[str, Any]:
    """The entries of the tests' own tokenizer.json, without the prefix."""
    content = json.loads(write_tokenizer(tmp_path, vocab_size).read_text(encoding="utf-8"))
    entries = tokenizer_entries(content, "gpt-2")
    return {name.removeprefix("tokenizer.ggml."): given for name, given in entries.items()}


def test_byte_level_ids_are_those_of_tokenizer_json(tmp_path: Path) -> None:
    found = library(tmp_path, **byte_level(tmp_path))
    reference = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))

    @settings(deadline=None)
    @given(texts)
    def check(text: str) -> None:
        ids = found.encode(text).ids
        assert ids == reference.encode(text).ids
        assert found.decode(ids) == text

    check()
    assert found.encode("a<|endoftext|>b").ids == reference.encode("a<|endoftext|>b").ids


def test_gpt2_is_exact(test_data: Path, tmp_path: Path) -> None:
    file = test_data / "tokenizers" / "gpt2" / "tokenizer.json"
    entries = tokenizer_entries(json.loads(file.read_text(encoding="utf-8")), "gpt-2")
    (tmp_path / "t.gguf").write_bytes(header(entries))
    made = tokenizer_source(read_header(tmp_path / "t.gguf"))
    assert made is not None
    found, reference = open_source(made), tokenizers.Tokenizer.from_file(str(file))
    korean = (test_data / "evals" / "ko-en.tsv").read_text(encoding="utf-8")
    novel = (test_data / "texts" / "novel-doyle-hound-1902.txt").read_text(encoding="utf-8")
    for text in (*TEXTS, korean, novel[:100_000], "a<|endoftext|>b"):
        assert found.encode(text).ids == reference.encode(text).ids


def test_llama3_is_exact(test_data: Path, tmp_path: Path) -> None:
    """The ranks of Meta's own file as llama.cpp's converter writes them."""
    published = find_tokenizer(test_data / "tokenizers" / "llama3")
    assert published is not None
    entries = tokenizer_entries(published.read(), "llama-bpe")
    entries["tokenizer.ggml.bos_token_id"] = 128000
    (tmp_path / "t.gguf").write_bytes(header(entries))
    made = tokenizer_source(read_header(tmp_path / "t.gguf"))
    assert made is not None
    found, reference = open_source(made), open_source(published)
    korean = (test_data / "evals" / "ko-en.tsv").read_text(encoding="utf-8")
    for text in (*TEXTS, korean, "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"):
        assert found.encode(text).ids == reference.encode(text).ids


CUT = "It's 12345 HelloWorld's  we'LL\n\n/x e\u0301"
EXPECTED = {
    "gpt-2": ["It", "'s", " 12345", " HelloWorld", "'s", " ", " we", "'", "LL", "\n", "\n"],
    "smollm": ["It", "'s", " ", "1", "2", "3", "4", "5", " HelloWorld", "'s", " ", " we", "'"],
    "llama-bpe": ["It", "'s", " ", "123", "45", " HelloWorld", "'s", " ", " we", "'LL", "\n\n"],
    "qwen2": ["It", "'s", " ", "1", "2", "3", "4", "5", " HelloWorld", "'s", " ", " we", "'LL"],
    "gpt-4o": [
        "It's",
        " ",
        "123",
        "45",
        " Hello",
        "World's",
        " ",
        " we'LL",
        "\n\n",
        "/x",
        " e\u0301",
    ],
    "tekken": [
        "It",
        "'s",
        " ",
        "1",
        "2",
        "3",
        "4",
        "5",
        " Hello",
        "World",
        "'s",
        " ",
        " we",
        "'LL",
    ],
}
SAME = {"phi-2": "gpt-2", "olmo": "gpt-2", "starcoder": "smollm", "dbrx": "llama-bpe"}
SAME |= {"llama3": "llama-bpe", "llama-v3": "llama-bpe", "falcon3": "llama-bpe"}


@pytest.mark.parametrize("name", WORDS)
def test_a_text_is_cut_as_the_name_says(name: str, tmp_path: Path) -> None:
    found = library(tmp_path, **byte_level(tmp_path) | {"pre": name})
    words = [CUT[begin:end] for _, (begin, end) in found.pre_tokenizer.pre_tokenize_str(CUT)]
    expected = EXPECTED[SAME.get(name, name)]
    assert words[: len(expected)] == expected
    model = json.loads(found.to_str())["model"]
    whole = ("llama-bpe", "llama3", "llama-v3", "falcon3", "tekken")
    assert model["ignore_merges"] == (name in whole)
    composed = found.normalizer is not None and found.normalizer.normalize_str("e\u0301") == "é"
    assert composed == (name in ("qwen2", "olmo"))


def test_an_unknown_way_to_cut_is_refused_by_name(tmp_path: Path) -> None:
    entries = byte_level(tmp_path)
    with pytest.raises(CheckpointError, match="pre is 'viking', expected .* --tokenizer FOLDER"):
        source(tmp_path, **entries | {"pre": "viking"}).read()
    with pytest.raises(CheckpointError, match="pre is missing, expected one of dbrx, falcon3, gpt"):
        source(tmp_path, **{k: v for k, v in entries.items() if k != "pre"}).read()


def test_files_from_before_there_were_names_are_of_their_architecture(tmp_path: Path) -> None:
    config = gpt2_config(vocab_size=300)
    tokenizer = write_tokenizer(tmp_path, 300)
    file = write_gguf(tmp_path / "m.gguf", config, gpt2_tensors(config), tokenizer)
    file.write_bytes(file.read_bytes().replace(b"tokenizer.ggml.pre", b"tokenizer.ggml.PRE"))
    found = open_checkpoint(file).tokenizer
    assert found is not None and open_source(found).encode("ab").ids


# --- kinds of tokens ----------------------------------------------------------------------------


def small(**changes: Any) -> dict[str, Any]:
    """A byte-level tokenizer over a few letters, its tokens of every kind."""
    return {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": ["a", "b", "ab", "<s>", "</s>", "<tool>", "[PAD6]"],
        "token_type": [PLAIN, PLAIN, PLAIN, CONTROL, CONTROL, USER_DEFINED, UNUSED],
        "merges": ["a b"],
        "bos_token_id": 3,
        "eos_token_id": 4,
    } | changes


def test_control_tokens_are_special_and_those_of_users_are_not(tmp_path: Path) -> None:
    found = library(tmp_path, **small())
    assert found.encode("ab<s>a<tool>b").ids == [2, 3, 0, 5, 1]
    special = {i for i, token in found.get_added_tokens_decoder().items() if token.special}
    assert special == {3, 4}
    assert found.token_to_id("[PAD6]") is None  # fills the embedding


@pytest.mark.parametrize(
    "flags, expected",
    [
        ({}, [2]),
        ({"add_bos_token": True}, [3, 2]),
        ({"add_eos_token": True}, [2, 4]),
        ({"add_bos_token": True, "add_eos_token": True}, [3, 2, 4]),
        ({"pre": "llama-bpe"}, [3, 2]),
        ({"pre": "llama-bpe", "add_bos_token": False}, [2]),
    ],
)
def test_texts_begin_and_end_as_the_file_says(
    flags: dict[str, Any], expected: list[int], tmp_path: Path
) -> None:
    assert library(tmp_path, **small(**flags)).encode("ab").ids == expected


def test_without_kinds_the_named_tokens_are_special(tmp_path: Path) -> None:
    entries = {name: value for name, value in small().items() if name != "token_type"}
    found = library(tmp_path, **entries)
    assert sorted(found.get_added_tokens_decoder()) == [3, 4]


def ends_of(tmp_path: Path, **entries: Any) -> Any:
    source(tmp_path, **entries)
    return end_ids(read_header(tmp_path / "t.gguf"))


def test_a_turn_ends_by_every_token_that_ends_one(tmp_path: Path) -> None:
    assert ends_of(tmp_path, **small()) == {"bos_token_id": 3, "eos_token_id": 4}
    assert ends_of(tmp_path, **small(eot_token_id=5))["eos_token_id"] == [4, 5]
    chat = small(tokens=["a", "b", "ab", "<s>", "<|endoftext|>", "<|im_end|>", "<|eot_id|>"])
    chat["token_type"] = [PLAIN] * 3 + [CONTROL] * 3 + [PLAIN]
    assert ends_of(tmp_path, **chat)["eos_token_id"] == [4, 5]


def test_phi3_takes_the_spaces_behind_its_special_tokens(tmp_path: Path) -> None:
    entries = {f"tokenizer.ggml.{name}": value for name, value in pieces().items()}
    (tmp_path / "t.gguf").write_bytes(header(entries | {"general.architecture": "phi3"}))
    found = tokenizer_source(read_header(tmp_path / "t.gguf"))
    assert found is not None
    stripped = {token["content"]: token["rstrip"] for token in found.read()["added_tokens"]}
    assert stripped == {"<unk>": False, "<s>": False, "</s>": True}


# --- templates and names ------------------------------------------------------------------------


def test_names_and_template_come_along(tmp_path: Path) -> None:
    entries = {f"tokenizer.ggml.{name}": value for name, value in small().items()}
    template: dict[str, Any] = {"tokenizer.chat_template": "{{ messages }}"}
    (tmp_path / "t.gguf").write_bytes(header(entries | template))
    found = tokenizer_source(read_header(tmp_path / "t.gguf"))
    assert found is not None and found.config == {
        "clean_up_tokenization_spaces": False,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "chat_template": "{{ messages }}",
    }
    template |= {"tokenizer.chat_templates": ["tool_use"]}
    template |= {"tokenizer.chat_template.tool_use": "{{ tools }}"}
    (tmp_path / "t.gguf").write_bytes(header(entries | template))
    found = tokenizer_source(read_header(tmp_path / "t.gguf"))
    assert found is not None and found.config["chat_template"] == [
        {"name": "default", "template": "{{ messages }}"},
        {"name": "tool_use", "template": "{{ tools }}"},
    ]


def test_a_file_without_tokens_has_no_tokenizer(tmp_path: Path) -> None:
    for entries in ({}, {"tokenizer.ggml.model": "no_vocab"}, {"tokenizer.ggml.model": "none"}):
        (tmp_path / "t.gguf").write_bytes(header(entries))
        assert tokenizer_source(read_header(tmp_path / "t.gguf")) is None


def test_its_own_tokenizer_comes_before_one_beside_it(tmp_path: Path) -> None:
    config = gpt2_config(vocab_size=300)
    own = write_tokenizer(tmp_path / "own", 300)
    write_tokenizer(tmp_path, 280)
    file = write_gguf(tmp_path / "m.gguf", config, gpt2_tensors(config), own)
    found = open_checkpoint(file).tokenizer
    assert found is not None and found.files == (file,)
    given = open_checkpoint(file, tmp_path / "own").tokenizer
    assert given is not None and given.files == (own,)


# --- sentencepiece ------------------------------------------------------------------------------

WORDS_OF = ["▁t", "he", "▁the", "in", "▁a", "▁▁", "aa", "aaaa", "er", "ing"]
LETTERS = sorted({letter for word in WORDS_OF for letter in word} | set("bcdfg.,'\n"))
PIECES = [("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL)]
PIECES += [(f"<0x{byte:02X}>", 0.0, BYTE) for byte in range(256)]
PIECES += [(word, -float(i), PLAIN) for i, word in enumerate(WORDS_OF)]
PIECES += [(letter, -float(len(WORDS_OF) + i), PLAIN) for i, letter in enumerate(LETTERS)]


def pieces(**changes: Any) -> dict[str, Any]:
    """The entries of a sentencepiece model."""
    listed = changes.pop("pieces", PIECES)
    return {
        "model": "llama",
        "pre": "default",
        "tokens": [text for text, _, _ in listed],
        "scores": [score for _, score, _ in listed],
        "token_type": [kind for _, _, kind in listed],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
    } | changes


@pytest.mark.parametrize("prefix", [False, True], ids=["as it is", "space in front"])
@pytest.mark.parametrize("remove", [False, True], ids=["all spaces", "spaces removed"])
def test_pieces_give_the_ids_of_sentencepiece(prefix: bool, remove: bool, tmp_path: Path) -> None:
    module = pytest.importorskip("sentencepiece")
    model = pytest.importorskip("sentencepiece.sentencepiece_model_pb2").ModelProto()
    for text, score, kind in PIECES:
        model.pieces.add(piece=text, score=score, type=kind)
    model.trainer_spec.model_type, model.trainer_spec.byte_fallback = 2, True
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = prefix
    model.normalizer_spec.remove_extra_whitespaces = remove
    processor = module.SentencePieceProcessor(model_proto=model.SerializeToString())
    flags = {"add_space_prefix": prefix, "remove_extra_whitespaces": remove}
    found = library(tmp_path, **pieces(**flags))

    @settings(deadline=None)
    @given(texts)
    def check(text: str) -> None:
        assert found.encode(text).ids == [1, *processor.encode(text)]

    check()


def test_llama2_is_exact(test_data: Path, tmp_path: Path) -> None:
    module = pytest.importorskip("sentencepiece")
    file = test_data / "tokenizers" / "llama2" / "tokenizer.model"
    model = module.SentencePieceProcessor(model_file=str(file))
    kinds = {1: PLAIN, 2: UNKNOWN, 3: CONTROL, 6: BYTE}
    listed = []
    for i in range(model.vocab_size()):
        kind = UNKNOWN if model.is_unknown(i) else CONTROL if model.is_control(i) else PLAIN
        kind = BYTE if model.is_byte(i) else kind
        listed.append((model.id_to_piece(i), model.get_score(i), kind))
    assert {kind for _, _, kind in listed} == set(kinds.values())
    found = library(tmp_path, **pieces(pieces=listed))
    korean = (test_data / "evals" / "ko-en.tsv").read_text(encoding="utf-8")
    novel = (test_data / "texts" / "novel-doyle-hound-1902.txt").read_text(encoding="utf-8")
    for text in (*TEXTS, korean, novel[:100_000]):
        ids = found.encode(text).ids
        assert ids == [1, *model.encode(text)]
        assert found.decode(ids) == text


def test_gemma_merges_in_the_order_of_its_pieces(tmp_path: Path) -> None:
    """Runs of spaces are in the file as tokens of users, and its scores are of no use."""
    listed = [("<pad>", 0.0, CONTROL), ("<bos>", 0.0, CONTROL), ("<unk>", 0.0, UNKNOWN)]
    listed += [("  ", -1000.0, USER_DEFINED), ("\n\n", -1000.0, USER_DEFINED)]
    listed += [(f"<0x{byte:02X}>", 0.0, BYTE) for byte in range(256)]
    listed += [("ab", -9.0, PLAIN), ("bc", -1.0, PLAIN)]
    listed += [(letter, 0.0, PLAIN) for letter in "▁abc\n"]
    entries = pieces(pieces=listed, add_space_prefix=False, eos_token_id=0, unknown_token_id=2)
    named = {f"tokenizer.ggml.{name}": value for name, value in entries.items()}
    (tmp_path / "t.gguf").write_bytes(header(named | {"general.architecture": "gemma3"}))
    made = tokenizer_source(read_header(tmp_path / "t.gguf"))
    assert made is not None
    found = open_source(made)
    assert found.encode("abc").tokens == ["<bos>", "ab", "c"]
    assert found.encode("a   b\n\nc").tokens == ["<bos>", "a", "▁▁", "▁", "b", "\n\n", "c"]
    assert found.decode(found.encode("a   b").ids) == "a   b"


# --- refusals -----------------------------------------------------------------------------------

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "kind": (small(model="bert"), "tokenizer.ggml.model is 'bert', expected gpt2 or llama; no oth"),
    "kind of a number": (small(model=3), "tokenizer.ggml.model is '3', expected a text"),
    "no tokens": (small(tokens=[1, 2]), "tokenizer.ggml.tokens has 2 values ('[1, 2]'), expected"),
    "a token twice": (small(tokens=list("abcdefa")), "tokens has 'a' twice, expected each token"),
    "other kinds": (small(token_type=[1, 1]), "token_type has 2 values ('[1, 1]'), expected 7"),
    "kinds of texts": (small(token_type=["x"] * 7), "token_type has 7 values"),
    "no merges": (small(merges=[1]), "merges has 1 values ('[1]'), expected a list of texts"),
    "merge of three": (small(merges=["a b a"]), "merge 0 is 'a b a', expected two tokens that"),
    "merge of strangers": (small(merges=["a b", "a c"]), "merge 1 is 'a c', expected two tokens"),
    "merge of nothing new": (small(merges=["b a"]), "merge 0 is 'b a', expected two tokens"),
    "begin beyond": (
        small(add_bos_token=True, bos_token_id=7),
        "bos_token_id is '7', expected bel",
    ),
    "begin of a text": (small(bos_token_id="a"), "bos_token_id is 'a', expected the number of a"),
    "flag of a number": (small(add_bos_token=1), "add_bos_token is '1', expected true or false"),
    "scores of others": (pieces(scores=[1.0]), "scores has 1 values"),
    "scores not numbers": (
        pieces(scores=[float("nan")] * len(PIECES)),
        "scores has 286 values ('[nan, nan, nan]'), expected 286 numbers",
    ),
    "bytes missing": (pieces(pieces=PIECES[:200]), "t.gguf has no byte fallback, expected a BPE"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(case: str, tmp_path: Path) -> None:
    entries, problem = REFUSED[case]
    with pytest.raises(CheckpointError) as caught:
        source(tmp_path, **entries).read()
    message = str(caught.value)
    assert message.startswith("t.gguf") and problem in message, message
    assert "; " in message and "\n" not in message and len(message) < 500
