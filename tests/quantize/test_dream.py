"""Dreams are what sampling row by row gives, and texts are cut into whole windows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chat_templates import CHATML
from checkpoint_files import gpt2_config, gpt2_tensors, write_checkpoint, write_tokenizer
from model_folders import with_files

from pocketlm.export.checkpoint import open_checkpoint
from pocketlm.export.errors import RequestError
from pocketlm.export.folder import ModelFolder
from pocketlm.export.writing import export_model
from pocketlm.quantize import dream as module
from pocketlm.quantize.dream import (
    QUESTIONS,
    Dreamer,
    chat_openings,
    common_words,
    dream,
    window_for,
    windows_of,
)
from pocketlm.quantize.run import precision_of
from pocketlm.runtime.session import Session
from pocketlm.runtime.tokenizer import Tokenizer

OPENINGS = [[5, 6, 7], [8, 9, 10, 11, 12]]
BEGIN, END = 299, 17


def generating(folder: ModelFolder, to: Path, **fields: Any) -> ModelFolder:
    """A copy of ``folder`` with another generation_config.json."""
    return with_files(folder, to, {"generation_config.json": json.dumps(fields)})


@pytest.fixture(scope="module")
def folder(tiny_folder: ModelFolder, tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    """One whose texts end with a token that others do not begin with."""
    to = tmp_path_factory.mktemp("dream") / "model"
    return generating(tiny_folder, to, bos_token_id=BEGIN, eos_token_id=END)


def dreamt_row_by_row(folder: ModelFolder, rows: int, window: int, seed: int) -> Any:
    """One row at a time through ``Session``: the slow twin."""
    dreamer, session = Dreamer(folder, OPENINGS, seed), Session(folder, 1)
    found = []
    for row in range(rows):
        ids, cache, sampler = dreamer.opening(row), session.new_cache(), dreamer.sampler(row)
        logits = session.step(ids, cache)
        while len(ids) < window:
            ended = ids[-1] == END
            ids = [*ids, BEGIN if ended else sampler(logits, ids)]
            logits = session.step(ids[-1:], cache)
        found.append(ids)
    return np.array(found)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_dream_is_what_sampling_row_by_row_gives(
    precision: str, folder: ModelFolder, tmp_path: Path
) -> None:
    if precision != "fp32":
        folder = export_model(folder, tmp_path / "out", precision_of(precision))
    found = dream(folder, 5 * 48, 48, seed=3, openings=OPENINGS, threads=1)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, dreamt_row_by_row(folder, 5, 48, seed=3))


def test_rows_begin_with_the_begin_token_and_every_other_one_with_an_opening(
    folder: ModelFolder,
) -> None:
    rows = dream(folder, 6 * 32, 32, openings=OPENINGS, threads=1)
    assert rows.shape == (6, 32)
    assert (rows[::2, 0] == BEGIN).all()
    assert [row[: len(OPENINGS[i % 2])].tolist() for i, row in enumerate(rows[1::2])] == [
        OPENINGS[0],
        OPENINGS[1],
        OPENINGS[0],
    ]
    cut = dream(folder, 2 * 4, 4, openings=OPENINGS[1:], threads=1)
    assert cut[1].tolist() == OPENINGS[1][:4]


def test_after_an_end_a_row_goes_on_with_a_new_beginning(folder: ModelFolder) -> None:
    rows = dream(folder, 8 * 128, 128, threads=1)
    ends = np.argwhere(rows[:, :-1] == END)
    assert len(ends) > 5
    assert all(rows[row, column + 1] == BEGIN for row, column in ends)


def test_the_same_seed_dreams_the_same_and_another_something_else(folder: ModelFolder) -> None:
    first, again = (dream(folder, 4 * 32, 32, seed=1, threads=1) for _ in range(2))
    other = dream(folder, 4 * 32, 32, seed=2, threads=1)
    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() > 0.8
    assert len({tuple(row) for row in first.tolist()}) == 4


def test_a_row_does_not_depend_on_how_many_are_dreamt_at_once(
    folder: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[int, int]] = []
    together = dream(folder, 5 * 32, 32, threads=1)
    monkeypatch.setattr(module, "CACHE_BYTES", 2 * 32 * folder.shape.kv_bytes_per_token)
    apart = dream(folder, 5 * 32, 32, threads=1, progress=lambda *n: told.append(n))
    np.testing.assert_array_equal(together, apart)
    assert told == sorted(told) and told[-1] == (160, 160) and len(told) == 3 * 32


def test_a_model_without_a_begin_token_begins_with_common_words(
    tiny_folder: ModelFolder, tmp_path: Path
) -> None:
    folder = generating(tiny_folder, tmp_path / "model", bos_token_id=None, eos_token_id=None)
    tokenizer = Tokenizer.open(folder.path / "tokenizer.json")
    words = common_words(tokenizer)
    rows = dream(folder, 6 * 8, 8, threads=1)
    assert rows[:, 0].tolist() == [words[row % len(words)] for row in range(6)]
    assert {tokenizer.decode([word])[0] for word in words} <= set("TIAHSWB")


def test_ids_without_a_token_are_never_dreamt(tmp_path: Path) -> None:
    """A vocabulary that was padded to a round number, with rows like any other."""
    config = gpt2_config(vocab_size=300)
    source = write_checkpoint(tmp_path / "source", config, gpt2_tensors(config))
    write_tokenizer(source, 150)
    rows = dream(export_model(open_checkpoint(source), tmp_path / "out"), 4 * 64, 64, threads=1)
    assert rows[:, 1:].max() < 150


def test_openings_are_the_questions_in_the_models_chat_template(
    tiny_folder: ModelFolder, tmp_path: Path
) -> None:
    assert chat_openings(tiny_folder) == []
    config = json.dumps({"chat_template": CHATML.source, **CHATML.tokens})
    folder = with_files(tiny_folder, tmp_path / "model", {"tokenizer_config.json": config})
    tokenizer = Tokenizer.open(folder.path / "tokenizer.json")
    openings = chat_openings(folder)
    assert len(openings) == len(QUESTIONS) == len(set(QUESTIONS)) == 32
    for ids, question in zip(openings, QUESTIONS, strict=True):
        text = tokenizer.decode(ids)
        assert question in text and text.endswith("<|im_start|>assistant\n")


@pytest.mark.parametrize(
    "tokens, window, words",
    [
        (1000, 161, "found windows of 161 in 1,000 tokens, expected 2 to 160"),
        (100, 128, "found windows of 128 in 100 tokens, expected 2 to 100"),
        (100, 1, "found windows of 1 in 100 tokens"),
    ],
)
def test_windows_that_do_not_fit_are_refused(
    tokens: int, window: int, words: str, tiny_folder: ModelFolder
) -> None:
    with pytest.raises(RequestError, match=words):
        dream(tiny_folder, tokens, window)
    assert window_for(tiny_folder.shape) == 160


def test_openings_of_another_model_are_refused(tiny_folder: ModelFolder) -> None:
    with pytest.raises(RequestError, match=r"openings\[1\] has the token id 300, expected 0 to 29"):
        dream(tiny_folder, 64, 32, openings=[[1], [2, 300]])


# Texts -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer(tiny_folder: ModelFolder) -> Tokenizer:
    """The tiny one's."""
    return Tokenizer.open(tiny_folder.path / "tokenizer.json")


def text_file(path: Path, word: str, size: int = 20_000) -> Path:
    path.write_text(" ".join(f"{word}{number}" for number in range(size // 8)), encoding="utf-8")
    return path


def test_a_text_is_cut_into_whole_windows_in_order(tokenizer: Tokenizer, tmp_path: Path) -> None:
    file = text_file(tmp_path / "a.txt", "été")
    rows = windows_of([file], tokenizer, 64, 4096)
    assert rows.shape == (64, 64) and rows.dtype == np.int64
    ids = tokenizer.encode(file.read_text(encoding="utf-8"))
    assert rows.reshape(-1).tolist() == ids[:4096]


def test_files_take_turns(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Whatever their sizes: the short one's windows come before the long one's are used up."""
    files = [text_file(tmp_path / "a.txt", "aa"), text_file(tmp_path / "b.txt", "bb", 300)]
    rows = windows_of(files, tokenizer, 64, 4096)
    texts = [tokenizer.decode(row) for row in rows]
    short = len(tokenizer.encode(files[1].read_text())) // 64
    assert ["b" in text for text in texts[: 2 * short]] == [False, True] * short
    assert not any("b" in text for text in texts[2 * short :]) and len(rows) == 64


def test_every_window_begins_as_the_tokenizer_begins_a_text(
    starting_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    file = text_file(tmp_path / "a.txt", "word")
    rows = windows_of([file], starting_tokenizer, 64, 4096)
    (begin,) = set(rows[:, 0].tolist())
    assert starting_tokenizer.encode("") == [begin]
    ids = starting_tokenizer.encode(file.read_text())[1:]
    assert rows[:, 1:].reshape(-1).tolist() == ids[: 64 * 63]


def test_too_short_a_text_says_how_many_tokens_are_needed(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    file = tmp_path / "short.txt"
    file.write_text("etaoin " * 40)
    with pytest.raises(RequestError, match=r"short.txt: found \d+ tokens in whole windows of 64, "):
        windows_of([file], tokenizer, 64)
    with pytest.raises(RequestError, match="no file: found 0 tokens.* expected at least 2,048: "):
        windows_of([], tokenizer)


def test_what_is_no_text_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    file = tmp_path / "picture"
    file.write_bytes(b"\xff\xfe\x00" * 10_000)
    for path in (file, tmp_path / "none", tmp_path):
        with pytest.raises(RequestError, match="cannot be read .*, expected a text in UTF-8"):
            windows_of([path], tokenizer)
