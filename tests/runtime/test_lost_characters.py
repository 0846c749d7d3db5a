"""Characters without a token: found in every kind of tokenizer, and in none that has them all."""

from __future__ import annotations

from pathlib import Path

import pytest
import tokenizers
from character_tokenizers import ALPHABET, FAMILIES, characters, opened
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers

from pocketlm.runtime.lost_characters import lost_characters
from pocketlm.runtime.tokenizer import Tokenizer


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_not_in_the_alphabet_is_lost(family: str, tmp_path: Path) -> None:
    tokenizer = opened(FAMILIES[family](), tmp_path)

    @given(st.text(st.sampled_from(f"{ALPHABET}aabxé한🙂")))
    def check(text: str) -> None:
        assert lost_characters(tokenizer, text) == "".join(c for c in text if c not in ALPHABET)

    check()


@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_byte_level_loses_nothing(starting_tokenizer: Tokenizer, text: str) -> None:
    assert lost_characters(starting_tokenizer, text) == ""
    assert lost_characters(starting_tokenizer, f"{text}<|endoftext|>") == ""


def test_a_special_token_that_is_also_the_unknown_one_is_not_lost_where_it_is_spelled(
    tmp_path: Path,
) -> None:
    library = characters(unk_token="<unk>")
    library.add_special_tokens([AddedToken("<unk>", special=True)])
    assert lost_characters(opened(library, tmp_path), "ab<unk>한b") == "한"


def test_a_character_that_is_written_in_another_way_is_not_lost(tmp_path: Path) -> None:
    library = characters()
    library.normalizer = normalizers.Lowercase()
    assert lost_characters(opened(library, tmp_path), "ABx. C") == "x"


def test_what_a_normalizer_removes_is_lost(tmp_path: Path) -> None:
    library = characters()
    library.normalizer = normalizers.Replace("\n", "")
    assert lost_characters(opened(library, tmp_path), "a\nb") == "\n"


def test_the_space_before_a_sentencepiece_text_hides_nothing(tmp_path: Path) -> None:
    """Without bytes to fall back on; "▁" is put before the text, and taken off again."""
    library = tokenizers.Tokenizer(models.BPE({c: i for i, c in enumerate("ab▁")}, []))
    library.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    library.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer = opened(library, tmp_path)
    assert lost_characters(tokenizer, "a b") == lost_characters(tokenizer, "  a ") == ""
    assert lost_characters(tokenizer, "x") == "x"
    assert lost_characters(tokenizer, " a\tb ") == "\t"
