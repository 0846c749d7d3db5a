"""Tokenizer files of three kinds, built here: decoding by bytes agrees with the library's."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from llama2_tokenizer import as_llama2
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from pocketlm.export.errors import ModelFolderError, RequestError
from pocketlm.export.tokenizers.opening import library_errors
from pocketlm.runtime.detokenizer import ByteDetokenizer
from pocketlm.runtime.tokenizer import Tokenizer

FAMILY = "\N{MAN}\N{ZERO WIDTH JOINER}\N{WOMAN}\N{ZERO WIDTH JOINER}\N{GIRL}"
TEXTS = [
    "The quick brown fox jumps over the lazy dog, and then it's 1234 o'clock.",
    "다람쥐 헌 쳇바퀴에 타고파. 안녕하세요, 오늘 날씨가 좋네요!",
    "素早い茶色の狐。日本語のテキスト",
    f"flags 🇰🇷🇫🇷, a family {FAMILY}, a thumb 👍🏽 and a heart ❤️",
    "e\u0301 a\u0308 u\u0302\u0301 combining, naïve café, Ĝis revido, ½ × 3 ¬ \u00ad",
    "  two leading spaces\tand\r\ncontrol \x00\x7f characters \n\n",
    "\u1100\u1161\u11a8 conjoining jamo, عربى, ไทย, हिन्दी",
]


def byte_level() -> tokenizers.Tokenizer:
    """As GPT-2: byte-level BPE."""
    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>"],
        show_progress=False,
    )
    library.train_from_iterator(TEXTS, trainer)
    library.add_tokens(["Ċafé", "→ added 漢"])  # in the alphabet: bytes; beyond it: text
    return library


def sentencepiece() -> tokenizers.Tokenizer:
    """As Llama 2: "▁" for spaces, a <0xXX> token per byte, <s> put in front."""
    trained = tokenizers.Tokenizer(models.BPE())
    trained.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    trainer = trainers.BpeTrainer(vocab_size=150, show_progress=False)
    trained.train_from_iterator(TEXTS[:2], trainer)
    return as_llama2(trained)


def character_level() -> tokenizers.Tokenizer:
    """As a nanoGPT character model: one token per character, fused."""
    characters = sorted(set("".join(TEXTS)))
    library = tokenizers.Tokenizer(
        models.BPE(vocab={character: i for i, character in enumerate(characters)}, merges=[])
    )
    library.decoder = decoders.Fuse()
    return library


KINDS = {kind.__name__: kind() for kind in (byte_level, sentencepiece, character_level)}


def open_built(library: tokenizers.Tokenizer, folder: Path) -> Tokenizer:
    path = folder / "tokenizer.json"
    library.save(str(path))
    return Tokenizer.open(path)


@pytest.fixture(scope="module", params=sorted(KINDS))
def kind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One kind: the library's tokenizer and ours, opened from its file."""
    library = KINDS[request.param]
    return library, open_built(library, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def bytewise(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return open_built(KINDS["byte_level"], tmp_path_factory.mktemp("bytewise"))


@pytest.fixture(scope="module")
def llama_like(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return open_built(KINDS["sentencepiece"], tmp_path_factory.mktemp("llama_like"))


def stream(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    detokenizer = tokenizer.detokenizer()
    return [detokenizer.add(token_id) for token_id in ids] + [detokenizer.finish()]


# ---- agreement with the library ----


@pytest.mark.parametrize("text", TEXTS)
def test_encode_and_decode_agree_with_the_library(kind: Any, text: str) -> None:
    library, ours = kind
    ids = ours.encode(text)
    assert ids == library.encode(text).ids
    assert ours.decode(ids) == library.decode(ids) == text
    with_special = ours.decode(ids, skip_special_tokens=False)
    assert with_special == library.decode(ids, skip_special_tokens=False)
    assert "".join(stream(ours, ids)) == text


@settings(deadline=None)
@given(text=st.text().filter(lambda text: "▁" not in text))  # sentencepiece: it is a space
def test_any_text_comes_back_from_bytes(
    bytewise: Tokenizer, llama_like: Tokenizer, text: str
) -> None:
    for ours in (bytewise, llama_like):
        ids = ours.encode(text)
        if not ours.special_ids.isdisjoint(ids[1:]):  # hypothesis spelled a special token
            continue
        assert ours.decode(ids) == text
        assert "".join(stream(ours, ids)) == text


def test_vocabulary_agrees_with_the_library(kind: Any) -> None:
    library, ours = kind
    vocabulary = library.get_vocab(with_added_tokens=True)
    assert ours.vocab_size == max(vocabulary.values()) + 1
    for text, token_id in vocabulary.items():
        assert ours.id_of(text) == token_id
    assert ours.id_of("no such token") is None
    assert ours.id_of("\ud800") is None


# ---- bytes ----


def test_byte_level_tokens_cover_every_byte_once(bytewise: Tokenizer) -> None:
    alphabet = [bytewise.id_of(character) for character in pre_tokenizers.ByteLevel.alphabet()]
    found = [bytewise.token_bytes(token_id) for token_id in alphabet if token_id is not None]
    assert sorted(found) == [bytes([byte]) for byte in range(256)]


def test_added_tokens_are_bytes_only_when_spelled_in_the_alphabet(bytewise: Tokenizer) -> None:
    in_alphabet, beyond = bytewise.id_of("Ċafé"), bytewise.id_of("→ added 漢")
    assert in_alphabet is not None and beyond is not None
    assert bytewise.token_bytes(in_alphabet) == b"\naf\xe9"
    assert bytewise.token_bytes(beyond) == "→ added 漢".encode()


def test_byte_fallback_tokens_are_bytes(llama_like: Tokenizer) -> None:
    assert [llama_like.token_bytes(3 + byte) for byte in range(256)] == [
        bytes([byte]) for byte in range(256)
    ]


def test_special_tokens_add_no_bytes_unless_wanted(bytewise: Tokenizer) -> None:
    end = bytewise.id_of("<|endoftext|>")
    assert end is not None and bytewise.special_ids == {end}
    assert bytewise.token_bytes(end) == b""
    assert bytewise.token_bytes(end, skip_special_tokens=False) == b"<|endoftext|>"
    # Text that spells it becomes it: that is the library's way, and documented.
    ids = bytewise.encode("a<|endoftext|>b")
    assert end in ids and bytewise.decode(ids) == "ab"
    assert bytewise.decode(ids, skip_special_tokens=False) == "a<|endoftext|>b"


@pytest.mark.parametrize("text", TEXTS)
def test_ends_lead_through_the_text(kind: Any, text: str) -> None:
    library, tokenizer = kind
    ids, ends = tokenizer.encode_with_ends(text)
    assert ids == library.encode(text, add_special_tokens=False).ids
    assert len(ends) == len(ids)
    assert max(ends) <= len(text)


def test_special_tokens_of_the_post_processor_can_be_left_out(llama_like: Tokenizer) -> None:
    assert llama_like.encode("fox")[0] == llama_like.id_of("<s>")
    assert llama_like.encode("fox", add_special_tokens=False) == llama_like.encode("fox")[1:]


def test_ids_without_a_token_add_nothing_and_negative_ones_are_refused(kind: Any) -> None:
    _, ours = kind
    assert ours.decode([ours.vocab_size, 2**31, 2**32, 2**70]) == ""
    with pytest.raises(RequestError, match="token id -1, expected 0 or above"):
        ours.decode([-1])


# ---- streaming ----


@settings(deadline=None)
@given(data=st.data())
def test_pieces_of_any_ids_join_to_the_decoded_text(kind: Any, data: st.DataObject) -> None:
    _, ours = kind
    ids = data.draw(st.lists(st.integers(0, ours.vocab_size + 2), max_size=40))
    pieces = stream(ours, ids)
    assert "".join(pieces) == ours.decode(ids)
    for piece in pieces:
        piece.encode("utf-8")  # whole characters, no surrogates


def test_all_two_byte_sequences_stream_as_they_decode(llama_like: Tokenizer) -> None:
    for first in range(256):
        for second in range(256):
            pieces = stream(llama_like, [5, 3 + first, 3 + second])  # byte 02 first: no strip
            assert "".join(pieces[1:]) == bytes([first, second]).decode("utf-8", "replace")


def test_all_two_byte_sequences_of_a_byte_level_tokenizer(bytewise: Tokenizer) -> None:
    id_of_byte = {
        bytewise.token_bytes(token_id): token_id
        for character in pre_tokenizers.ByteLevel.alphabet()
        if (token_id := bytewise.id_of(character)) is not None
    }
    for first in range(256):
        for second in range(256):
            pair = bytes([first, second])
            ids = [id_of_byte[pair[:1]], id_of_byte[pair[1:]]]
            expected = pair.decode("utf-8", "replace")
            assert "".join(stream(bytewise, ids)) == bytewise.decode(ids) == expected


@settings(deadline=None)
@given(text=st.text(min_size=1))
def test_at_most_three_bytes_are_held_back(llama_like: Tokenizer, text: str) -> None:
    detokenizer = llama_like.detokenizer(after=[5])
    shown, seen = "", b""
    for byte in text.encode("utf-8"):
        seen += bytes([byte])
        shown += detokenizer.add(3 + byte)
        assert len(seen) - len(shown.encode("utf-8")) <= 3
        assert text.startswith(shown)
    assert detokenizer.finish() == ""


def test_unfinished_character_becomes_one_replacement_at_the_end(llama_like: Tokenizer) -> None:
    face = "\N{GRINNING FACE}".encode()
    assert stream(llama_like, [3 + byte for byte in face[:3]]) == ["", "", "", "\ufffd"]
    assert stream(llama_like, [3 + 0xFF, 3 + 0x41]) == ["\ufffd", "A", ""]


def test_only_the_first_space_of_a_sentencepiece_text_is_stripped(llama_like: Tokenizer) -> None:
    space = llama_like.id_of("▁")
    start = llama_like.id_of("<s>")
    assert space is not None and start is not None
    assert llama_like.decode([start, space, space, start, space]) == "  "
    assert stream(llama_like, [start, space, space, start, space]) == ["", "", " ", "", " ", ""]
    assert stream(llama_like, [3 + 0x20, space]) == ["", " ", ""]


def test_text_after_a_prompt_keeps_its_space(llama_like: Tokenizer) -> None:
    space, letter = llama_like.id_of("▁"), llama_like.id_of("b")
    assert space is not None and letter is not None
    detokenizer = llama_like.detokenizer(after=llama_like.encode("The quick"))
    assert [detokenizer.add(token_id) for token_id in (space, letter)] == [" ", "b"]
    detokenizer = llama_like.detokenizer(after=llama_like.encode(""))
    assert [detokenizer.add(token_id) for token_id in (space, letter)] == ["", "b"]


IDS = st.lists(st.integers(0, 258) | st.sampled_from([3 + byte for byte in b" a\xf0\x9f\xa6\x86"]))


@settings(deadline=None)
@given(after=IDS, then=IDS)
def test_what_follows_a_prompt_is_as_if_each_token_had_been_added(
    llama_like: Tokenizer, after: list[int], then: list[int]
) -> None:
    one, other = llama_like.detokenizer(after=after), llama_like.detokenizer()
    for token_id in after:
        other.add(token_id)
    assert [*map(one.add, then), one.finish()] == [*map(other.add, then), other.finish()]


def test_of_a_long_prompt_few_tokens_are_looked_at() -> None:
    looked: list[int] = []

    def bytes_of(token_id: int, first: bool) -> bytes:
        looked.append(token_id)
        return b" a"

    for strip, first in ((0, False), (1, False), (0, True)):
        looked.clear()
        ByteDetokenizer(bytes_of, strip, first).follow(range(1_000_000))
        assert 1 <= len(looked) < 10


# ---- what is refused ----


def test_truncation_padding_and_dropout_are_switched_off(tmp_path: Path) -> None:
    library = tokenizers.Tokenizer.from_str(KINDS["byte_level"].to_str())
    library.enable_truncation(4)
    library.enable_padding(length=64)
    library.model.dropout = 0.9
    text = "The quick brown fox jumps over the lazy dog"
    expected = KINDS["byte_level"].encode(text).ids
    ours = open_built(library, tmp_path)
    assert all(ours.encode(text) == expected for _ in range(20))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x" * 101, "text has 101 characters, expected at most 100; shorten it"),
        ("ab\ud83dc", r"text has the lone surrogate U\+D83D at character 2, expected Unicode"),
        (b"bytes", "text is of type bytes, expected a string; decode bytes first"),
        (None, "text is of type NoneType, expected a string"),
    ],
)
def test_texts_that_cannot_be_encoded_are_refused(
    bytewise: Tokenizer, text: Any, message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        bytewise.encode(text, max_characters=100)


def test_empty_text_is_no_token(bytewise: Tokenizer) -> None:
    assert bytewise.encode("") == []
    assert bytewise.decode([]) == ""
    assert stream(bytewise, []) == [""]


@pytest.mark.parametrize("character", ["x", " ", "漢", "\N{ZERO WIDTH JOINER}", "\n"])
def test_long_runs_come_back(bytewise: Tokenizer, llama_like: Tokenizer, character: str) -> None:
    for ours in (bytewise, llama_like):
        assert ours.decode(ours.encode(character * 65536)) == character * 65536


def damaged(change: Callable[[dict[str, Any]], object]) -> str:
    content = json.loads(KINDS["byte_level"].to_str())
    change(content)
    return json.dumps(content)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("", "reading it failed"),
        ("{}", "reading it failed"),
        ("[" * 100_000, "reading it failed"),
        (damaged(lambda c: c.pop("model")), "reading it failed"),
        (damaged(lambda c: c["model"]["merges"].append(["no", "such"])), "reading it failed"),
        (damaged(lambda c: c["model"]["vocab"].update(a=-1)), "reading it failed"),
        (damaged(lambda c: c["model"]["vocab"].update(a=2**40)), "reading it failed"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, content: str, found: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ModelFolderError, match=f"tokenizer.json: {found} .* export the checkpoint"):
        Tokenizer.open(path)


def test_missing_and_binary_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    with pytest.raises(ModelFolderError, match="'tokenizer.json' cannot be opened"):
        Tokenizer.open(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ModelFolderError, match="tokenizer.json: reading it failed .Unicode"):
        Tokenizer.open(path)


def test_a_file_too_large_to_be_a_tokenizer_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ModelFolderError, match="expected at most 64,000,000 bytes of a tokenizer"):
        Tokenizer.open(path)


def test_a_panic_in_encoding_is_found_by_opening(tmp_path: Path) -> None:
    content = json.loads(KINDS["sentencepiece"].to_str())
    content["post_processor"]["special_tokens"] = {}  # its template still says <s>
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ModelFolderError, match="tokenizer.json: encoding a text failed .Panic"):
        Tokenizer.open(path)


class PanicException(BaseException):
    """Named and derived as PyO3's, which cannot be imported."""


@pytest.mark.parametrize("stops", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_panics_become_errors_and_interrupts_pass(stops: type[BaseException]) -> None:
    with pytest.raises(ModelFolderError, match=r"t.json: testing failed \(PanicException: index"):
        with library_errors("testing", "t.json", ModelFolderError):
            raise PanicException("index out of bounds")
    with pytest.raises(stops):
        with library_errors("testing", "t.json", ModelFolderError):
            raise stops


def test_mutated_files_open_or_are_refused(tmp_path: Path) -> None:
    generator = random.Random(1)
    path = tmp_path / "tokenizer.json"
    sources = [library.to_str().encode() for library in KINDS.values()]
    num_refused = 0
    for round_ in range(150):
        content = bytearray(sources[round_ % len(sources)])
        for _ in range(generator.randint(1, 3)):
            content[generator.randrange(len(content))] = generator.randrange(256)
        path.write_bytes(content)
        try:
            ours = Tokenizer.open(path)
            ours.decode(ours.encode("the fox 한"))
        except ModelFolderError:
            num_refused += 1
    assert 0 < num_refused < 150
