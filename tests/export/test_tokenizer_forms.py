"""Every form of tokenizer becomes a tokenizer.json with exactly the same ids."""

from __future__ import annotations

import base64
import json
import random
import re
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pocketlm.export.errors import CheckpointError
from pocketlm.export.tokenizers import find_tokenizer, open_tokenizer, sentencepiece, tiktoken
from pocketlm.runtime.tokenizer import Tokenizer

TEXTS = [
    "The quick brown fox jumps over the lazy dog, and then it's 1234567 o'clock; we'LL see.",
    "다람쥐 헌 쳇바퀴에 타고파. 안녕하세요, 오늘 날씨가 좋네요!",
    "素早い茶色の狐。日本語のテキスト 中文文本。",
    "flags 🇰🇷🇫🇷, a family 👨\u200d👩\u200d👧, a thumb 👍🏽 and a heart ❤️",
    "e\u0301 a\u0308 combining, naïve café, Ĝis revido, ½ × 3 ¬ \u00ad",
    "def f(x):\n    if x:\n\t\treturn {'a': [1, 2.5e-3]}  # comment\n\n\n    return None\r\n",
    "  two leading spaces,   runs    of     spaces \t\t tabs \n\n\n newlines \r\n  ",
    "aaaaaaaaaaaaaaaaaaaaaaa bbbbbbbbbb ====================== -------- ....",
    b"broken \xff\xfe bytes \xed\xa0\x80 replaced".decode("utf-8", errors="replace"),
    "\x00\x07\x7f control",
    "",
    " ",
    "\u2581 the mark itself\u2581",
]
texts = st.one_of(
    st.text(max_size=60),
    st.text(alphabet=" \n\tab1'.,Zé漢🙂", max_size=60),
    st.sampled_from(TEXTS),
)


def converted(path: Path, tmp_path: Path) -> Tokenizer:
    file = tmp_path / "converted.json"
    file.write_text(json.dumps(open_tokenizer(path).read()), encoding="utf-8")
    return Tokenizer.open(file)


# tiktoken ---------------------------------------------------------------------------------------


def small_ranks(seed: int = 0, size: int = 400) -> dict[bytes, int]:
    """Byte strings and ranks as byte-pair training makes them, on ``TEXTS``."""
    words = [text.encode() for text in TEXTS]
    ranks = {bytes([byte]): byte for byte in range(256)}
    parts = [[bytes([byte]) for byte in word] for word in words]
    while len(ranks) < size:
        counts: dict[bytes, int] = {}
        for word in parts:
            for left, right in zip(word, word[1:], strict=False):
                counts[left + right] = counts.get(left + right, 0) + 1
        best = max((pair for pair in counts if pair not in ranks), key=lambda pair: counts[pair])
        ranks[best] = len(ranks)
        for i, word in enumerate(parts):
            merged: list[bytes] = []
            for part in word:
                if merged and merged[-1] + part == best:
                    merged[-1] = best
                else:
                    merged.append(part)
            parts[i] = merged
    return ranks


def rank_lines(ranks: dict[bytes, int]) -> bytes:
    return b"".join(
        base64.b64encode(token) + f" {rank}\n".encode() for token, rank in ranks.items()
    )


def reference_encoding(ranks: dict[bytes, int], special: dict[str, int]) -> Any:
    module = pytest.importorskip("tiktoken")
    return module.Encoding(
        "test", pat_str=tiktoken.PATTERN, mergeable_ranks=ranks, special_tokens=special
    )


@pytest.fixture
def small_llama3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    ranks = small_ranks()
    monkeypatch.setattr(tiktoken, "NUM_RANKS", len(ranks))
    file = tmp_path / "tokenizer.model"
    file.write_bytes(rank_lines(ranks))
    return tmp_path


def test_ranks_give_the_ids_of_tiktoken(small_llama3: Path) -> None:
    encoding = reference_encoding(small_ranks(), {})
    tokenizer = converted(small_llama3, small_llama3)

    @settings(deadline=None)
    @given(texts)
    def check(text: str) -> None:
        ids = tokenizer.encode(text)
        assert ids == [400, *encoding.encode(text, disallowed_special=())]
        assert tokenizer.decode(ids) == text

    check()


def test_llama3_tokenizer_is_exact(test_data: Path, tmp_path: Path) -> None:
    source = test_data / "tokenizers" / "llama3"
    ranks = tiktoken._ranks(source / "tokenizer.model")
    tokenizer = converted(source, tmp_path)
    special = {name: tokenizer.id_of(name) or 0 for name in tiktoken.NAMED.values()}
    assert special["<|begin_of_text|>"] == 128000
    assert special["<|eot_id|>"] == 128009
    assert tokenizer.vocab_size == 128256
    encoding = reference_encoding(ranks, special)
    korean = (test_data / "evals" / "ko-en.tsv").read_text(encoding="utf-8")
    novel = (test_data / "texts" / "novel-doyle-hound-1902.txt").read_text(encoding="utf-8")
    for text in (*TEXTS, korean, novel[:100_000]):
        ids = tokenizer.encode(text)
        assert ids == [128000, *encoding.encode(text, disallowed_special=())]
        assert tokenizer.decode(ids) == text
    chat = "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
    expected = encoding.encode(chat, allowed_special="all")
    assert tokenizer.encode(chat, add_special_tokens=False) == expected


@pytest.mark.parametrize(
    "damage",
    [
        lambda lines: lines[:-20],  # cut off
        lambda lines: lines.replace(b" 300\n", b" 301\n"),
        lambda lines: lines.replace(b" 300\n", b"\n"),
        lambda lines: lines + lines.split(b"\n")[0] + b" 400\n",
        lambda lines: lines + b"!!! 400\n",
        lambda lines: lines[len(b"AA== 0\n") :],
        lambda lines: b"AA== 0\n",
    ],
)
def test_damaged_ranks_are_refused(damage: Any, small_llama3: Path) -> None:
    file = small_llama3 / "tokenizer.model"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(CheckpointError) as caught:
        open_tokenizer(small_llama3).read()
    assert "\n" not in str(caught.value)


def test_ranks_of_another_model_are_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(rank_lines(small_ranks()))
    with pytest.raises(CheckpointError, match="128,000 of Llama 3"):
        open_tokenizer(tmp_path).read()


def test_special_tokens_of_the_config_win(small_llama3: Path) -> None:
    tokens = {
        "400": {"content": "<|begin_of_text|>", "special": True},
        "401": {"content": "<|mine|>", "special": True},
    }
    config = {"added_tokens_decoder": tokens, "add_bos_token": False}
    (small_llama3 / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = converted(small_llama3, small_llama3)
    assert tokenizer.encode("<|mine|>") == [401]
    assert tokenizer.vocab_size == 402


# vocab.json and merges.txt ----------------------------------------------------------------------


def test_vocab_and_merges_give_the_ids_of_tokenizer_json(test_data: Path, tmp_path: Path) -> None:
    gpt2 = test_data / "tokenizers" / "gpt2"
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(gpt2 / name, tmp_path)
    tokenizer = converted(tmp_path, tmp_path)
    library = tokenizers.Tokenizer.from_file(str(gpt2 / "tokenizer.json"))
    for text in (*TEXTS, "a<|endoftext|>b"):
        ids = tokenizer.encode(text)
        assert ids == library.encode(text).ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert tokenizer.special_ids == {50256}


def small_vocab(folder: Path, **config: Any) -> Path:
    vocab = {character: i for i, character in enumerate("abcd")} | {"ab": 4, "cd": 5, "abcd": 6}
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("#version: 0.2\na b\nc d\nab cd\n")
    if config:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_merges_come_in_their_order(tmp_path: Path) -> None:
    assert converted(small_vocab(tmp_path), tmp_path).encode("abcdabc") == [6, 4, 2]


def test_qwen2_composes_characters_and_takes_digits_one_by_one(tmp_path: Path) -> None:
    content = open_tokenizer(small_vocab(tmp_path, tokenizer_class="Qwen2Tokenizer")).read()
    assert content["normalizer"] == {"type": "NFC"}
    pattern = content["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"]
    assert r"|\p{N}|" in pattern


@pytest.mark.parametrize(
    "change, named",
    [
        ({"merges.txt": "a b c\n"}, "line 1"),
        ({"merges.txt": "a d\n"}, "line 1"),
        ({"vocab.json": '{"a": 0, "b": 2}'}, "vocab.json"),
        ({"vocab.json": '{"a": "x"}'}, "vocab.json"),
        ({"vocab.json": "[]"}, "vocab.json"),
        ({"tokenizer_config.json": '{"tokenizer_class": "CLIPTokenizer"}'}, "CLIPTokenizer"),
        ({"tokenizer_config.json": '{"added_tokens_decoder": {"x": 1}}'}, "added_tokens_decoder"),
        ({"tokenizer_config.json": '{"add_bos_token": 3}'}, "add_bos_token"),
    ],
)
def test_damaged_vocabularies_are_refused(
    change: dict[str, str], named: str, tmp_path: Path
) -> None:
    small_vocab(tmp_path)
    for name, text in change.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(CheckpointError, match=named) as caught:
        open_tokenizer(tmp_path).read()
    assert "\n" not in str(caught.value)


# sentencepiece ----------------------------------------------------------------------------------


def field(number: int, value: bytes | int | float) -> bytes:
    """One field of a protocol buffer."""
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def varint(value: int) -> bytes:
    result = b""
    while value > 0x7F:
        result += bytes([value & 0x7F | 0x80])
        value >>= 7
    return result + bytes([value])


def small_model(**changes: Any) -> bytes:
    """A sentencepiece BPE model over a few words, with byte fallback."""
    words = [
        "\u2581t",
        "he",
        "\u2581the",
        "in",
        "\u2581a",
        "\u2581\u2581",
        "aa",
        "aaaa",
        "er",
        "ing",
    ]
    letters = sorted({letter for word in words for letter in word} | set("bcdfg.,'\n"))
    pieces = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]
    pieces += [(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)]
    pieces += [(word, -float(i), 1) for i, word in enumerate(words)]
    pieces += [(letter, -float(len(words) + i), 1) for i, letter in enumerate(letters)]
    data = b""
    for text, score, kind in changes.get("pieces", pieces):
        message = field(1, text.encode()) + field(2, score) + field(3, kind)
        data += field(1, message)
    trainer = {3: 2, 35: 1} | changes.get("trainer", {})
    data += field(2, b"".join(field(number, value) for number, value in trainer.items()))
    normalizer = {1: b"identity", 3: 1, 4: 0, 5: 1} | changes.get("normalizer", {})
    return data + field(3, b"".join(field(n, value) for n, value in normalizer.items()))


@pytest.mark.parametrize("prefix", [0, 1], ids=["as it is", "space in front"])
@pytest.mark.parametrize("remove", [0, 1], ids=["all spaces", "spaces removed"])
def test_sentencepiece_models_give_the_ids_of_the_library(
    prefix: int, remove: int, tmp_path: Path
) -> None:
    library = pytest.importorskip("sentencepiece")
    file = tmp_path / "tokenizer.model"
    file.write_bytes(small_model(normalizer={3: prefix, 4: remove}))
    processor = library.SentencePieceProcessor(model_file=str(file))
    tokenizer = converted(tmp_path, tmp_path)

    @settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(texts)
    def check(text: str) -> None:
        if any(token in text for token in ("<s>", "</s>", "<unk>")):
            return
        ids = tokenizer.encode(text)
        assert ids == [1, *processor.encode(text)]
        if not remove and "\u2581" not in text:
            assert tokenizer.decode(ids) == text

    check()


@pytest.mark.parametrize(
    "config, texts",
    [
        ({}, [" a", "<s>", " b", "</s>", " c"]),
        ({"legacy": False}, [" a", "<s>", "b", "</s>", "c"]),
        ({"legacy": False, "add_prefix_space": False}, ["a", "<s>", "b", "</s>", "c"]),
        ({"add_prefix_space": False}, ["a", "<s>", "b", "</s>", "c"]),
    ],
    ids=str,
)
def test_where_a_space_is_put_in_front_is_said_by_the_config(
    config: dict[str, Any], texts: list[str], tmp_path: Path
) -> None:
    """As ``LlamaTokenizerFast`` of transformers 4.57 makes it of a tokenizer.model."""
    (tmp_path / "tokenizer.model").write_bytes(small_model())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = converted(tmp_path, tmp_path)
    ids = tokenizer.encode("a<s>b</s>c", add_special_tokens=False)
    parts = [tokenizer.token_bytes(i, skip_special_tokens=False).decode() for i in ids]
    assert re.findall(r" ?[abc]|</?s>", "".join(parts)) == texts
    assert tokenizer.decode(tokenizer.encode("a b")) == "a b"


def test_llama2_tokenizer_is_exact(test_data: Path, tmp_path: Path) -> None:
    library = pytest.importorskip("sentencepiece")
    source = test_data / "tokenizers" / "llama2"
    processor = library.SentencePieceProcessor(model_file=str(source / "tokenizer.model"))
    tokenizer = converted(source, tmp_path)
    korean = (test_data / "evals" / "ko-en.tsv").read_text(encoding="utf-8")
    novel = (test_data / "texts" / "novel-doyle-hound-1902.txt").read_text(encoding="utf-8")
    for text in (*TEXTS, korean, novel[:100_000]):
        ids = tokenizer.encode(text)
        assert ids == [1, *processor.encode(text)]
        if "\u2581" not in text:
            assert tokenizer.decode(ids) == text
    assert tokenizer.vocab_size == 32000


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"trainer": {3: 1}}, "type 1"),
        ({"trainer": {35: 0}}, "byte fallback"),
        ({"trainer": {24: 1}}, "behind a word"),
        ({"normalizer": {1: b"nmt_nfkc", 2: b"\x01\x02"}}, "nmt_nfkc"),
        ({"normalizer": {5: 0}}, "spaces as they are"),
        ({"pieces": [("a", 0.0, 1), ("a", 0.0, 1)]}, "byte fallback|twice"),
        ({"pieces": []}, "no pieces"),
    ],
)
def test_models_that_cannot_be_had_exactly_are_refused(
    changes: dict[str, Any], named: str, tmp_path: Path
) -> None:
    (tmp_path / "tokenizer.model").write_bytes(small_model(**changes))
    with pytest.raises(CheckpointError, match=named):
        open_tokenizer(tmp_path).read()


def test_damaged_models_never_end_in_anything_but_an_error(tmp_path: Path) -> None:
    whole = small_model()
    file = tmp_path / "tokenizer.model"
    generator = random.Random(0)
    for _ in range(400):
        data = bytearray(whole)
        for _ in range(generator.randint(1, 8)):
            data[generator.randrange(len(data))] = generator.randrange(256)
        if generator.random() < 0.3:
            del data[generator.randrange(len(data)) :]
        file.write_bytes(bytes(data))
        try:
            content = sentencepiece.read(file, {})
        except CheckpointError as error:
            assert "\n" not in str(error)
        else:
            assert set(content) >= {"model", "decoder"}


# Finding ----------------------------------------------------------------------------------------


def test_tokenizer_json_is_preferred_to_what_must_be_converted(tmp_path: Path) -> None:
    small_vocab(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(small_model())
    assert open_tokenizer(tmp_path).name == "tokenizer.model"
    (tmp_path / "tokenizer.json").write_text('{"model": {"vocab": {"x": 0}}}')
    assert open_tokenizer(tmp_path).read() == {"model": {"vocab": {"x": 0}}}
    assert open_tokenizer(tmp_path / "tokenizer.model").name == "tokenizer.model"


def test_an_empty_folder_has_none(tmp_path: Path) -> None:
    assert find_tokenizer(tmp_path) is None


def test_config_and_chat_template_come_along(tmp_path: Path) -> None:
    small_vocab(tmp_path, eos_token="<end>", chat_template="{{ messages }}")
    (tmp_path / "chat_template.jinja").write_text("{% for m in messages %}é{% endfor %}", "utf-8")
    files = open_tokenizer(tmp_path).folder_files({"spelled": "out"})
    assert json.loads(files["tokenizer.json"]) == {"spelled": "out"}
    assert json.loads(files["tokenizer_config.json"])["eos_token"] == "<end>"
    assert files["chat_template.jinja"].decode() == "{% for m in messages %}é{% endfor %}"


def test_tokenizer_json_comes_along_byte_for_byte(tmp_path: Path) -> None:
    data = b'{ "model":  {"vocab": {"x": 0}} }\r\n'
    (tmp_path / "tokenizer.json").write_bytes(data)
    source = open_tokenizer(tmp_path)
    files = source.folder_files(source.read())
    assert files == {"tokenizer.json": data, "tokenizer_config.json": b"{}"}


@pytest.mark.parametrize("data", [b"\xff\xfe", b"x" * 1_000_001])
def test_a_template_that_is_no_text_is_refused(data: bytes, tmp_path: Path) -> None:
    small_vocab(tmp_path)
    (tmp_path / "chat_template.jinja").write_bytes(data)
    with pytest.raises(CheckpointError, match="chat_template.jinja"):
        open_tokenizer(tmp_path)
