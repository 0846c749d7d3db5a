"""The quality measurement: its sums against plain formulas, its windows, and known comparisons."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from checkpoint_files import gpt2_config, gpt2_tensors, write_checkpoint

from pocketlm.benchmarks.quality import Sums, compare, log_softmax, table, windows
from pocketlm.export.checkpoint import open_checkpoint
from pocketlm.export.errors import RequestError
from pocketlm.quantize.run import export_checkpoint
from pocketlm.runtime.session import Session
from pocketlm.runtime.tokenizer import Tokenizer

CONTEXT = 64
TEXT = "The rest of the story is told in the other room.\nIt was late, and no one heard.\n" * 8


@pytest.fixture(scope="module")
def sessions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Session]:
    """One checkpoint in three precisions; weights large enough for a distribution with shape."""
    root = tmp_path_factory.mktemp("quality")
    config = gpt2_config(vocab_size=300, n_positions=CONTEXT, n_embd=64)
    tensors = {
        name: values * 3 if values.ndim == 2 else values
        for name, values in gpt2_tensors(config).items()
    }
    source = open_checkpoint(write_checkpoint(root / "gpt2", config, tensors))
    folders = {
        precision: export_checkpoint(source, root / precision, precision)
        for precision in ("fp32", "int8", "int4")
    }
    return {precision: Session(folder, threads=1) for precision, folder in folders.items()}


@pytest.fixture
def tokenizer(tiny_checkpoint: Path) -> Tokenizer:
    return Tokenizer.open(tiny_checkpoint / "tokenizer.json")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def test_log_softmax_equals_the_formula_in_float64() -> None:
    logits = np.random.default_rng(0).normal(0, 30, (5, 1000)).astype(np.float32)
    wide = logits.astype(np.float64)
    expected = wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))
    found = log_softmax(logits)
    assert found.dtype == np.float32
    # Two roundings to float32 of numbers up to 200.
    np.testing.assert_allclose(found, expected, rtol=0, atol=3e-5)


def test_log_softmax_of_huge_logits_is_finite() -> None:
    found = log_softmax(np.array([[1e30, 1e30, -1e30]], np.float32))
    np.testing.assert_allclose(found[0, :2], np.log(0.5), rtol=1e-6)


def test_sums_equal_the_formulas_over_several_windows() -> None:
    random = np.random.default_rng(1)
    reference = random.normal(0, 2, (2, 7, 50)).astype(np.float32)
    other = (reference + random.normal(0, 0.7, reference.shape)).astype(np.float32)
    ids = random.integers(0, 50, (2, 7))
    sums = Sums()
    for window in range(2):
        sums.add(reference[window], other[window], ids[window])
    found = sums.result()

    p = np.exp(reference.astype(np.float64))
    p /= p.sum(axis=-1, keepdims=True)
    q = np.exp(other.astype(np.float64))
    q /= q.sum(axis=-1, keepdims=True)
    kl = (p * np.log(p / q)).sum(axis=-1).ravel()
    following = [(w, s, ids[w, s + 1]) for w in range(2) for s in range(6)]
    expected = {
        "tokens": 14,
        "kl": kl.mean(),
        "kl_standard_error": kl.std() / np.sqrt(14),
        "top1_agreement": (p.argmax(-1) == q.argmax(-1)).mean(),
        "perplexity": np.exp(-np.mean([np.log(q[place]) for place in following])),
        "reference_perplexity": np.exp(-np.mean([np.log(p[place]) for place in following])),
    }
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("length", [7, 64])
def test_windows_tile_the_text_and_drop_the_rest(
    tokenizer: Tokenizer, text: Path, length: int
) -> None:
    ids = [299]
    for line in TEXT.splitlines(keepends=True):
        ids += tokenizer.encode(line)
    found = list(windows(tokenizer, text, length))
    assert len(found) == len(ids) // length > 1
    assert np.concatenate(found).tolist() == ids[: len(found) * length]


@pytest.mark.parametrize("limit, count", [(63, 0), (64, 1), (127, 1), (128, 2)])
def test_windows_end_at_the_limit(tokenizer: Tokenizer, text: Path, limit: int, count: int) -> None:
    found = list(windows(tokenizer, text, CONTEXT, limit))
    assert [len(window) for window in found] == [CONTEXT] * count


def test_a_session_loses_nothing_against_itself(
    sessions: dict[str, Session], tokenizer: Tokenizer, text: Path
) -> None:
    full = sessions["fp32"]
    result = compare(full, {"itself": full}, tokenizer, [text, text], limit=128)["itself"]
    assert (result["tokens"], result["kl"], result["top1_agreement"]) == (256, 0, 1)
    assert result["perplexity"] == result["reference_perplexity"] > 1


def test_fewer_bits_lose_more(
    sessions: dict[str, Session], tokenizer: Tokenizer, text: Path
) -> None:
    others = {name: sessions[name] for name in ("int8", "int4")}
    results = compare(sessions["fp32"], others, tokenizer, [text], limit=None)
    assert results["int4"]["kl"] > results["int8"]["kl"] > 0
    assert results["int4"]["kl"] > results["int4"]["kl_standard_error"] > 0
    assert results["int8"]["top1_agreement"] > results["int4"]["top1_agreement"]
    lines = table(results, {"fp32": 4_000_000, "int8": 1_000_000, "int4": 600_000}).splitlines()
    assert lines[2].startswith("| fp32 | 4.0 | 0 | 100 % |")
    assert [line.split(" | ")[:2] for line in lines[3:5]] == [["| int8", "1.0"], ["| int4", "0.6"]]


def test_a_text_shorter_than_a_window_is_refused(
    sessions: dict[str, Session], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    (tmp_path / "short.txt").write_text("too short")
    with pytest.raises(RequestError, match="no window of 64 tokens in short.txt"):
        compare(sessions["fp32"], {}, tokenizer, [tmp_path / "short.txt"], None)
