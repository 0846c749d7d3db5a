"""Text that spells special tokens stays text, and every other rule of the tokenizer holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

from pocketlm.export.errors import RequestError
from pocketlm.runtime.quoting import HIDING, NAMING, Quotation
from pocketlm.runtime.tokenizer import Tokenizer

SPECIAL = ["<s>", "<|end|>", "<|end|>>", "<|role|>"]
LETTERS = "abcdefgh <|>\nends_role"


def byte_level() -> tokenizers.Tokenizer:
    """As Llama 3, and with a token that takes the spaces after it, as Phi 3."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    merges = [("e", "n"), ("en", "d"), ("|", ">"), ("<", "|"), ("Ġ", "a"), ("a", "b")]
    pieces = [*sorted(alphabet), *(left + right for left, right in merges)]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    library = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens(SPECIAL[:3])
    library.add_special_tokens([AddedToken(SPECIAL[3], rstrip=True, special=True)])
    library.add_tokens(["<think>"])  # not special: part of a text
    return library


def sentencepiece(kind: str) -> tokenizers.Tokenizer:
    """As Llama 2 and its kin, with "▁" for spaces and in front of a text."""
    pieces = ["<unk>", *SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
    pairs = [("e", "n"), ("en", "d"), ("▁", "a"), ("<", "|")]
    pieces += sorted({*LETTERS} - {" "}) + [left + right for left, right in pairs]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    library = tokenizers.Tokenizer(
        models.BPE(vocab=vocab, merges=pairs, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    if kind == "prepend":
        library.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    else:
        library.pre_tokenizer = pre_tokenizers.Metaspace(
            replacement="▁", prepend_scheme=kind, split=False
        )
    library.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    library.add_special_tokens(["<unk>", *SPECIAL])
    library.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return library


MADE: dict[str, Callable[[], tokenizers.Tokenizer]] = {
    "byte level": byte_level,
    "prepend": lambda: sentencepiece("prepend"),
    "first": lambda: sentencepiece("first"),
    "always": lambda: sentencepiece("always"),
}


@pytest.fixture(scope="module", params=MADE)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return Tokenizer(MADE[request.param](), Path("tokenizer.json"))


def quote(tokenizer: Tokenizer, before: str, content: str, after: str) -> list[int]:
    """What ``before + content + after`` becomes when the middle is a stranger's."""
    quotation = Quotation(tokenizer.special_spellings)
    text = before + quotation.hide(content) + after
    return tokenizer.encode_quoting(text, quotation, add_special_tokens=False)


spelled = st.sampled_from([*SPECIAL, "<unk>", "<think>", " ", "\U000f0000", chr(NAMING)])
contents = st.lists(spelled | st.text(LETTERS, max_size=4), max_size=8).map("".join)


@given(content=contents)
def test_hiding_is_undone(content: str) -> None:
    quotation = Quotation(SPECIAL)
    hidden = quotation.hide(content)
    assert quotation.restore(hidden) == content
    assert not any(special in hidden for special in SPECIAL)


@given(content=contents)
def test_two_texts_hidden_together_are_told_apart(content: str) -> None:
    quotation = Quotation(SPECIAL)
    parts = [quotation.hide(text) for text in (content, "<s>", content + "<|end|>")]
    assert [quotation.restore(part) for part in parts] == [content, "<s>", content + "<|end|>"]


def test_of_two_spellings_that_begin_alike_the_longer_is_meant() -> None:
    hidden = Quotation(SPECIAL).hide("a<|end|>>b<|end|>c")
    assert hidden == f"a{chr(HIDING)}b{chr(HIDING + 1)}c"


@given(content=contents)
def test_a_content_never_becomes_special(tokenizer: Tokenizer, content: str) -> None:
    found = quote(tokenizer, "<s><|role|>", content, "<|end|>")
    special = [token_id for token_id in found if token_id in tokenizer.special_ids]
    unknown = {tokenizer.id_of("<unk>")}
    expected = [tokenizer.id_of(name) for name in ("<s>", "<|role|>", "<|end|>")]
    assert [token_id for token_id in special if token_id not in unknown] == expected
    # "<|role|>" takes the spaces after it, and a file may put one in front of a text.
    assert tokenizer.decode(found[2:-1]).lstrip() == content.lstrip()


@given(content=st.text(LETTERS, max_size=30))
def test_an_honest_content_is_encoded_as_ever(tokenizer: Tokenizer, content: str) -> None:
    quotation = Quotation(tokenizer.special_spellings)
    if quotation.hide(content) != content:
        return
    for before, after in (
        ("<s><|role|>", "<|end|>\n"),
        ("", ""),
        ("<s>", " x"),
        ("a ", "<|end|>>"),
    ):
        expected = tokenizer.encode(before + content + after, add_special_tokens=False)
        assert quote(tokenizer, before, content, after) == expected


def test_the_rules_of_the_file_are_kept(tokenizer: Tokenizer) -> None:
    quotation = Quotation(tokenizer.special_spellings)
    for special in (True, False):
        found = tokenizer.encode_quoting("<s>ab", quotation, add_special_tokens=special)
        assert found == tokenizer.encode("<s>ab", add_special_tokens=special)


def test_a_token_that_is_not_special_is_still_one() -> None:
    tokenizer = Tokenizer(byte_level(), Path("tokenizer.json"))
    assert tokenizer.id_of("<think>") in quote(tokenizer, "<s>", "a<think><s>", "<|end|>")


def test_guessing_characters_does_not_help(tokenizer: Tokenizer) -> None:
    """What stands for a special token in the twin is of the same planes, and secret."""
    quote(tokenizer, "", "<s>", "")
    twin = tokenizer._plain_twin("")
    names = list(twin._names.values())
    assert {*twin._names} == {*tokenizer.special_spellings, *twin.written}
    assert len({*names}) == len(names)
    assert all(len(name) == 6 and all(ord(c) >= NAMING for c in name) for name in names)
    other = Tokenizer(byte_level(), Path("tokenizer.json"))
    assert not {*names} & {*other._plain_twin("")._names.values()}


def test_limits_are_those_of_encode(tokenizer: Tokenizer) -> None:
    quotation = Quotation(tokenizer.special_spellings)
    text = quotation.hide("<|end|>" * 10)
    with pytest.raises(RequestError, match="text has 70 characters, expected at most 69"):
        tokenizer.encode_quoting(text, quotation, max_characters=69)
    assert tokenizer.encode_quoting(text, quotation, max_characters=70)
    with pytest.raises(RequestError, match="lone surrogate"):
        tokenizer.encode_quoting(text + "\ud800", quotation)


def test_a_tokenizer_without_special_tokens_quotes_nothing() -> None:
    library = tokenizers.Tokenizer(models.BPE(vocab={"a": 0, "b": 1}, merges=[]))
    tokenizer = Tokenizer(library, Path("tokenizer.json"))
    assert quote(tokenizer, "a", "<s>b", "a") == tokenizer.encode("a<s>ba")
