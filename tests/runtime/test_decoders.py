"""Every decoder of the tokenizers library, in any order: our texts and pieces are the library's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models

from pocketlm.export.errors import RequestError
from pocketlm.export.tokenizers.configured import configured
from pocketlm.runtime.tokenizer import Tokenizer

PIECES = [
    *("a", "▁b", "▁", "▁▁c▁d", "##e", "f</w>", "g</w>h", "<pad>", "|", "i|", "j", "n't", " "),
    *(".", " .", "!", "'", "s", " '", "  k ", "do", " do not", "Ġl", "Ċ", "é", "漢", "xx", "\x00m"),
    *("<0xE2>", "<0x82>", "<0xAC>", "<0x41>", "<0x20>", "<0xFF>", "<0xXY>", "", "##", "</w>"),
]
METASPACE = decoders.Metaspace()
LLAMA = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
DECODERS: dict[str, Any] = {
    "none": None,
    "bytes": decoders.ByteLevel(),
    "fuse": decoders.Fuse(),
    "metaspace": METASPACE,
    "metaspace first": decoders.Metaspace(prepend_scheme="first"),
    "metaspace never": decoders.Metaspace(prepend_scheme="never"),
    "word pieces": decoders.WordPiece(),
    "word pieces as they are": decoders.WordPiece(cleanup=False),
    "bpe": decoders.BPEDecoder(),
    "ctc": decoders.CTC(),
    "ctc as it is": decoders.CTC(cleanup=False),
    "llama": decoders.Sequence([*LLAMA, decoders.Strip(" ", 1, 0)]),
    "gemma": decoders.Sequence(LLAMA),
    "fallback first": decoders.Sequence([decoders.ByteFallback(), METASPACE]),
    "replaced after": decoders.Sequence([decoders.ByteFallback(), decoders.Replace("▁", " ")]),
    "fallback alone": decoders.ByteFallback(),
    "two of them": decoders.Sequence([METASPACE, decoders.WordPiece()]),
    "tokens stripped": decoders.Sequence([decoders.Strip(" ", 1, 0), decoders.Fuse()]),
    "text stripped": decoders.Sequence([decoders.Fuse(), decoders.Strip("a", 1, 0)]),
    "text replaced": decoders.Sequence([decoders.Fuse(), decoders.Replace("ab", "")]),
    "text replaced twice": decoders.Sequence(
        [decoders.Fuse(), decoders.Replace("xx", "x"), decoders.Replace("ax", "b")]
    ),
    "pattern": decoders.Sequence([decoders.Replace(Regex("[a▁]+"), "-"), decoders.Fuse()]),
    "bytes, then bpe": decoders.Sequence([decoders.ByteFallback(), decoders.BPEDecoder()]),
    "bpe, then bytes": decoders.Sequence([decoders.BPEDecoder(), decoders.ByteFallback()]),
    "ctc, then fuse": decoders.Sequence([decoders.CTC(), decoders.Fuse()]),
}
CLEANED = ("none", "metaspace", "word pieces")


def library_of(name: str) -> tokenizers.Tokenizer:
    vocab = {piece: index for index, piece in enumerate(PIECES)}
    library = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token="a"))
    if DECODERS[name] is not None:
        library.decoder = DECODERS[name]
    library.add_tokens([AddedToken("<x>"), AddedToken("<s>", special=True)])
    return library


@pytest.fixture(scope="module", params=[*DECODERS, *(f"{name}, cleaned" for name in CLEANED)])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The library's tokenizer and ours."""
    name, _, cleaned = request.param.partition(", cleaned" if "cleaned" in request.param else "\0")
    content = json.loads(library_of(name).to_str())
    if "cleaned" in request.param:
        content = configured(content, {"clean_up_tokenization_spaces": True}, {})
    file = tmp_path_factory.mktemp("decoder") / "tokenizer.json"
    file.write_text(json.dumps(content), encoding="utf-8")
    return library_of(name), Tokenizer.open(file), "cleaned" in request.param


def cleaned_up(text: str) -> str:
    """As transformers' ``clean_up_tokenization``."""
    for found, wanted in [
        *((" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't")),
        *((" 'm", "'m"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re")),
    ]:
        text = text.replace(found, wanted)
    return text


ids_of_tokens = st.lists(st.integers(0, len(PIECES) + 3), max_size=12)


@settings(deadline=None, max_examples=150)
@given(ids=ids_of_tokens, skip=st.booleans(), data=st.data())
def test_any_tokens_decode_as_by_the_library(
    both: Any, ids: list[int], skip: bool, data: st.DataObject
) -> None:
    library, ours, cleaned = both
    expected = library.decode(ids, skip_special_tokens=skip)
    if cleaned:
        expected = cleaned_up(expected)
    found = ours.decode(ids, skip_special_tokens=skip)
    if "\ufffd" not in expected:  # byte fallback gives up whole characters beside broken ones
        assert found == expected
    start = data.draw(st.integers(0, len(ids)))
    stream = ours.detokenizer(skip_special_tokens=skip)
    before = "".join(stream.add(token) for token in ids[:start])
    pieces = [*(stream.add(token) for token in ids[start:]), stream.finish()]
    assert before + "".join(pieces) == found


@settings(deadline=None, max_examples=50)
@given(before=ids_of_tokens, after=ids_of_tokens)
def test_a_text_goes_on_after_its_prompt(both: Any, before: list[int], after: list[int]) -> None:
    """What follows a prompt is shown as in the middle of a text, not as its beginning."""
    _, ours, _ = both
    stream = ours.detokenizer(after=before)
    shown = "".join([*map(stream.add, after), stream.finish()])
    whole = ours.decode([*before, *after])
    if whole.startswith(ours.decode(before)) and "\ufffd" not in whole:
        assert shown == whole[len(ours.decode(before)) :]


def test_tokens_without_bytes_of_their_own_are_of_no_use_to_a_form(both: Any) -> None:
    _, ours, _ = both
    try:
        assert len(ours.all_bytes(len(PIECES))) == len(PIECES)
    except RequestError as error:
        assert "expected tokens that stand for bytes" in str(error)
        assert ours._rule is None


def test_the_decoders_of_published_models_have_bytes(tmp_path: Path) -> None:
    for name in ("none", "bytes", "fuse", "metaspace", "word pieces", "llama", "gemma"):
        library_of(name).save(str(tmp_path / "tokenizer.json"))
        assert Tokenizer.open(tmp_path / "tokenizer.json")._rule is not None
