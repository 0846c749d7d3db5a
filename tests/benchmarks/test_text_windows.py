"""Text to windows: cutting changes no id, bytes and words add up, and every token is scored once.

The slow twin encodes the whole text at once. Tokenizers of three families are trained here on text
full of the places where a cut could go wrong; real ones are used where there is test data.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from character_tokenizers import ALPHABET, opened
from character_tokenizers import FAMILIES as LOSSY
from hypothesis import given, settings
from hypothesis import strategies as st
from llama2_tokenizer import as_llama2
from tokenizers import decoders, models, pre_tokenizers, trainers

from pocketlm.benchmarks.quality import documents, text_windows
from pocketlm.export.errors import RequestError
from pocketlm.export.folder import ModelFolder
from pocketlm.export.tokenizers import open_tokenizer, tiktoken
from pocketlm.runtime.scoring import start_token
from pocketlm.runtime.tokenizer import Tokenizer

TRAINING = (
    "It's late. \"Who's there?\" he said.\n\nNo one.\n\n\n = Title = \n\n  indented 1234567 times\n"
    "\tand tabbed,\r\nwith returns.\r\n\r\nfoo();\n\n}\n\n    return 12.5;\n漢字かな。\n\n漢字。 "
) * 8
Windows = list[text_windows.Window]


def gpt2_like() -> tokenizers.Tokenizer:
    """Byte-level BPE behind GPT-2's regular expression; knows runs of whitespace."""
    return _byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False))


def llama3_like() -> tokenizers.Tokenizer:
    """Byte-level BPE behind Llama 3's regular expression: newlines stay with punctuation."""
    pattern = pre_tokenizers.Split(tokenizers.Regex(tiktoken.PATTERN), "isolated")
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return _byte_level(pre_tokenizers.Sequence([pattern, plain]))


def _byte_level(pre_tokenizer: pre_tokenizers.PreTokenizer) -> tokenizers.Tokenizer:
    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizer
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=450,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>"],
        show_progress=False,
    )
    library.train_from_iterator([TRAINING], trainer)
    return library


def sentencepiece_like() -> tokenizers.Tokenizer:
    """As Llama 2: "▁" before the text and for spaces, no word boundaries, bytes for the rest."""
    trained = tokenizers.Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("\n", "removed"), pre_tokenizers.Metaspace()]
    )
    trained.train_from_iterator(
        [TRAINING], trainers.BpeTrainer(vocab_size=150, show_progress=False)
    )
    return as_llama2(trained, [("▁", "▁"), ("▁▁", "▁▁")])


FAMILIES = {family.__name__: family for family in (gpt2_like, llama3_like, sentencepiece_like)}


@pytest.fixture(scope="module", params=FAMILIES)
def tokenizer(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Tokenizer:
    path = tmp_path_factory.mktemp(request.param) / "tokenizer.json"
    FAMILIES[request.param]().save(str(path))
    return Tokenizer.open(path)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("text") / "text.txt"


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cuts everywhere they may be."""
    monkeypatch.setattr(text_windows, "PIECE_SIZE", 4)
    monkeypatch.setattr(text_windows, "CONTEXT_SIZE", 24)
    monkeypatch.setattr(documents, "BLOCK_SIZE", 7)


fragments = st.sampled_from(
    [
        *" \n\t\r",
        "  ",
        "\n\n",
        " \n",
        "a",
        "the",
        "It's",
        "'S",
        ".",
        ".\n",
        "1",
        "234567",
        "漢",
        "。",
    ]
    + ["<|endoftext|>", "<s>", "é", "e\u0301", "🙂", "\u3000", "\x00", "word word word", " = T = "]
)
texts = st.one_of(
    st.lists(fragments, min_size=1, max_size=60).map("".join),
    st.text(min_size=1, max_size=80),
    st.integers(0, len(TRAINING)).map(lambda cut: TRAINING[-cut:] + TRAINING[:cut]),
)


def in_one_go(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


@pytest.mark.usefixtures("small_pieces")
def test_cutting_changes_no_id_and_loses_no_byte_or_word(tokenizer: Tokenizer, file: Path) -> None:
    @settings(max_examples=150, deadline=None)
    @given(texts)
    def check(text: str) -> None:
        file.write_bytes(text.encode())
        tokens = list(text_windows.text_tokens(tokenizer, None, documents.read_text(file)))
        assert [i for part in tokens for i in part.ids.tolist()] == in_one_go(tokenizer, text)
        assert tokens[-1].bytes[-1] == len(text.encode())
        assert tokens[-1].words[-1] == len(re.split(r"\s+", text))
        joined = np.concatenate([part.bytes for part in tokens])
        assert (np.diff(joined) >= 0).all()

    check()


@pytest.mark.usefixtures("small_pieces")
def test_pieces_stay_short_and_join_to_the_text(tokenizer: Tokenizer, file: Path) -> None:
    for text in (TRAINING, "漢字かな。漢字！" * 40):  # the second is without a space
        file.write_bytes(text.encode())
        pieces = list(text_windows.text_pieces(tokenizer, documents.read_text(file)))
        assert "".join(piece for _, piece in pieces) == text
        # A piece ends with one of the first words of 4 characters or more after which it may.
        assert max(len(piece) for _, piece in pieces) < 60
        assert len(pieces) > len(text) / 20


def real(test_data: Path, name: str, tmp_path: Path) -> Tokenizer:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(open_tokenizer(test_data / "tokenizers" / name).read()))
    return Tokenizer.open(path)


@pytest.mark.parametrize("name", ["gpt2", "llama2", "llama3"])
def test_real_texts_keep_their_ids(
    test_data: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_windows, "PIECE_SIZE", 500)
    tokenizer = real(test_data, name, tmp_path)
    for text in sorted((test_data / "texts").glob("*.txt")):
        part = tmp_path / "part.txt"
        part.write_bytes(text.read_bytes()[:60_000])
        found = [*text_windows.text_tokens(tokenizer, None, documents.read_text(part))]
        expected = in_one_go(tokenizer, part.read_bytes().decode())
        assert [i for tokens in found for i in tokens.ids.tolist()] == expected, text.name
        assert len(found) > 50


def test_bytes_and_words_are_counted_where_tokens_end(tokenizer: Tokenizer, file: Path) -> None:
    """A prefix that ends with a token counts as a text of its own would."""
    text = "One  two\n\nthree é漢🙂 four. "
    file.write_bytes(text.encode())
    (tokens,) = text_windows.text_tokens(tokenizer, None, documents.read_text(file))
    for num_bytes, num_words in zip(tokens.bytes.tolist(), tokens.words.tolist(), strict=True):
        prefix = text.encode()[:num_bytes].decode()
        assert len(prefix.encode()) == num_bytes
        assert num_words == len(re.split(r"\s+", prefix))


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("family", LOSSY)
def test_what_has_no_token_counts_as_lost_and_nowhere_else(
    family: str, file: Path, tmp_path: Path
) -> None:
    """A window's bytes and words are those of the text without it, as far as its tokens reach."""
    tokenizer = opened(LOSSY[family](), tmp_path)
    parts = st.sampled_from([*ALPHABET, "ab. ", "한", "é \n", "  ", "b\n한국 c", "xx"])

    @settings(deadline=None)
    @given(st.lists(parts, min_size=1, max_size=30).map("".join), st.integers(2, 9), st.booleans())
    def check(text: str, window: int, starts: bool) -> None:
        file.write_bytes(text.encode())
        blocks = documents.read_documents(file)
        start = 0 if starts else None
        found = list(text_windows.text_windows(tokenizer, start, blocks, window, 1))
        read = "".join(c for c in text if c in ALPHABET)
        lost = "".join(c for c in text if c not in ALPHABET)
        ids = [*([0] * starts), *in_one_go(tokenizer, text)]
        assert [i for w in found for i in w.targets.tolist()] == ids[1:]
        if not found:
            assert len(ids) < 2
            return
        assert sum(w.lost_characters for w in found) == len(lost)
        assert sum(w.lost_bytes for w in found) == len(lost.encode())
        assert found[-1].bytes_done == len(text.encode())
        if starts:
            assert sum(w.num_bytes for w in found) == len(read)
            assert sum(w.num_words for w in found) == len(re.split(r"\s+", read))

    check()


def windows_of(file: Path, tokenizer: Tokenizer, *sizes: int | None) -> Windows:
    window, stride, *limit = sizes
    assert window is not None and stride is not None
    found = documents.read_documents(file)
    return list(text_windows.text_windows(tokenizer, 0, found, window, stride, *limit))


@given(st.integers(2, 40), st.integers(2, 30), st.data())
def test_every_token_is_scored_once_with_the_most_context(
    num_tokens: int, window: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, window - 1))
    numbers = np.arange(num_tokens)
    stream = [
        text_windows.Tokens(part, 10 * part, part // 3, 2 * part, 6 * part)
        for part in np.split(numbers, sorted(data.draw(st.sets(st.integers(1, num_tokens)))))
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_windows, "text_tokens", lambda *_: iter(stream))
        found = list(text_windows.text_windows(None, 0, [iter("")], window, stride))  # type: ignore[arg-type]

    # As in the documentation of transformers, whose first target of all is shifted away.
    expected, previous = [], 1
    for begin in range(0, num_tokens, stride):
        end = min(begin + window, num_tokens)
        if end > previous:
            expected.append((numbers[begin:end].tolist(), numbers[previous:end].tolist()))
        previous = end
        if end == num_tokens:
            break
    assert [(w.ids.tolist(), w.targets.tolist()) for w in found] == expected
    assert [i for w in found for i in w.targets.tolist()] == numbers[1:].tolist()
    assert sum(w.num_bytes for w in found) == 10 * (num_tokens - 1)
    assert sum(w.num_words for w in found) == (num_tokens - 1) // 3
    assert sum(w.lost_characters for w in found) == 2 * (num_tokens - 1)
    assert sum(w.lost_bytes for w in found) == 6 * (num_tokens - 1)
    assert all(w.inputs.tolist() == w.ids[:-1].tolist() for w in found)


def test_the_limit_counts_tokens_of_the_text(tokenizer: Tokenizer, file: Path) -> None:
    file.write_bytes(TRAINING.encode())
    for limit in (10, 37):
        windows = windows_of(file, tokenizer, 10, 5, limit)
        assert sum(window.num_scored for window in windows) == limit - 1
    windows = windows_of(file, tokenizer, 10, 5, 10**9)
    assert sum(window.num_scored for window in windows) == len(in_one_go(tokenizer, TRAINING))


def test_texts_begin_with_the_tokenizers_start_token_or_the_configs(
    tiny_folder: ModelFolder, tokenizer: Tokenizer
) -> None:
    gpt2 = Tokenizer.open(tiny_folder.path / "tokenizer.json")
    assert start_token(gpt2, tiny_folder) == gpt2.id_of("<|endoftext|>")
    expected = tokenizer.id_of("<s>") or gpt2.id_of("<|endoftext|>")
    assert start_token(tokenizer, tiny_folder) == expected


# Bad files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("block_size", [1, 3, 1 << 16])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"a\nb\xffc", r"found the byte 0xff at 3 \(line 2\), expected UTF-8 text; convert it"),
        (b"\xe6\xbc\xa2\n\n\xe6\xbc", r"found the byte 0xe6 at 5 \(line 3\), expected UTF-8"),
        (b"ab\xe6\xbcc", r"found the byte 0xe6 at 2 \(line 1\), expected UTF-8"),
        (b"", "found an empty file, expected a text; give another"),
    ],
)
def test_what_is_no_text_is_refused(
    data: bytes, message: str, block_size: int, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "BLOCK_SIZE", block_size)
    file.write_bytes(data)
    with pytest.raises(RequestError, match=f"text.txt: {message}"):
        documents.check_files([file])


def test_a_missing_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no.txt: cannot be read .No such file.*check path"):
        documents.check_files([tmp_path / "no.txt"])


def test_memory_does_not_grow_with_the_text(tokenizer: Tokenizer) -> None:
    """Pieces of an endless text come without reading on."""

    def endless() -> Iterator[str]:
        while True:
            yield TRAINING

    pieces = text_windows.text_pieces(tokenizer, endless())
    sizes = [len(next(pieces)[1]) for _ in range(20)]
    assert max(sizes) < 2 * text_windows.PIECE_SIZE
