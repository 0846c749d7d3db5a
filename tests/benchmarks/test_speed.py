"""The speed measurement's parts: shapes that export, a worker that answers, ratios and bars."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_files import gpt2_config

from pocketlm.benchmarks import shapes
from pocketlm.benchmarks.scorecard import SCORECARDS, gpt2_124m, llama_1b, ratio
from pocketlm.benchmarks.speed import Remote, measure, table
from pocketlm.export.architectures import find_architecture
from pocketlm.export.checkpoint import open_checkpoint
from pocketlm.export.folder import ModelFolder
from pocketlm.export.run import export_model
from pocketlm.runtime.session import Session
from pocketlm.runtime.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    """The model folder of a tiny shape written by ``shapes``, with room for every measurement."""
    root = tmp_path_factory.mktemp("speed")
    with pytest.MonkeyPatch.context() as patch:
        tiny = gpt2_config(vocab_size=300, n_positions=600, n_embd=32)
        patch.setitem(shapes.SHAPES, "tiny", tiny)
        checkpoint = shapes.write_checkpoint(root / "source", "tiny")
    return export_model(open_checkpoint(checkpoint), root / "out")


@pytest.fixture
def remote(folder: ModelFolder) -> Iterator[Remote]:
    remote = Remote(folder.path, 1)
    yield remote
    remote.close()


# ---- shapes ----


def test_a_written_shape_runs_with_sane_logits(folder: ModelFolder) -> None:
    session = Session(folder, threads=1)
    assert (session.shape.num_layers, session.shape.context_length) == (2, 600)
    logits = session.step(list(range(300)), session.new_cache())
    assert np.isfinite(logits).all() and 0.01 < logits.std() < 10


def test_the_written_tokenizer_has_an_id_for_every_byte(folder: ModelFolder) -> None:
    tokenizer = Tokenizer.open(folder.path / "tokenizer.json")
    text = "Grüße, x = 1\n\x00日本"
    ids = tokenizer.encode(text)
    assert ids == list(text.encode())
    assert tokenizer.decode(ids) == text


def test_same_seed_writes_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = gpt2_config(vocab_size=257, n_positions=8, n_embd=8, n_layer=1, n_head=1)
    monkeypatch.setitem(shapes.SHAPES, "tiny", tiny)
    first, same, other = (
        (shapes.write_checkpoint(tmp_path / str(i), "tiny", seed) / "model.safetensors")
        for i, seed in enumerate((1, 1, 2))
    )
    assert first.read_bytes() == same.read_bytes() != other.read_bytes()


def test_known_shapes_have_the_parameters_of_their_names() -> None:
    for name, config in shapes.SHAPES.items():
        sizes = find_architecture(config).tensor_shapes(config).values()
        parameters = sum(math.prod(shape) for shape in sizes)
        size, unit = name.split("-")[1][:-1], {"m": 1e6, "b": 1e9}[name[-1]]
        # Llama's names are rounded: its "8b" has 8.03 billion, its "1b" 1.24.
        assert parameters / unit == pytest.approx(float(size), rel=0.25 if unit == 1e9 else 0.005)


# ---- the worker ----


def test_worker_answers_over_its_pipes(remote: Remote, folder: ModelFolder) -> None:
    assert remote.opened["load_seconds"] > 0
    assert remote.opened["peak_rss_bytes"] > 10_000_000
    assert remote.ask(do="prefill", tokens=128)["seconds"] > 0
    decoded = remote.ask(do="decode", depth=32, tokens=16)
    assert decoded["seconds"] > 0
    assert 0 < decoded["outside_kernel"] < 1
    assert decoded["kv_bytes"] % folder.shape.kv_bytes_per_token == 0
    memory = remote.ask(do="memory")
    assert memory["peak_rss_bytes"] >= remote.opened["peak_rss_bytes"]


def test_worker_goes_to_the_end_of_the_context_and_from_its_start(remote: Remote) -> None:
    assert remote.ask(do="decode", depth=1, tokens=4)["seconds"] > 0
    assert remote.ask(do="decode", depth=568, tokens=32)["seconds"] > 0
    assert remote.ask(do="prefill", tokens=600)["seconds"] > 0


def test_worker_ends_when_its_pipe_is_closed(folder: ModelFolder) -> None:
    process = subprocess.run(
        [sys.executable, "-m", "pocketlm.benchmarks.worker", folder.path, "1"],
        input="",
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert process.stdout.count("\n") == 1


def test_measure_leaves_out_the_round_that_warms_up(folder: ModelFolder) -> None:
    started = time.perf_counter()
    results = measure({"a": folder.path, "b": folder.path}, 1, 2)
    elapsed = time.perf_counter() - started
    figures = {"prefill", "decode", "decode@32", "decode@512", "outside_kernel"}
    for name in ("a", "b"):
        samples = results["samples"][name]
        assert samples.keys() == figures
        assert all(len(values) == 2 for values in samples.values())
        assert all(0 < value < elapsed for values in samples.values() for value in values)
        assert results["opened"][name]["load_seconds"] > 0


# ---- arithmetic ----


def test_ratio_is_the_median_of_the_rounds_ratios() -> None:
    # By rounds 2, 4 and 3; the medians' ratio would be 4 / 2.
    assert ratio([1.0, 2.0, 3.0], [2.0, 8.0, 9.0]) == 3.0
    with pytest.raises(ValueError):
        ratio([1.0], [1.0, 2.0])


def results() -> dict[str, Any]:
    seconds = {
        "fp32": 0.04,
        "int8": 0.016,
        "int8-weight": 0.016,
        "int4": 0.008,
        "int4 b128, int4 head": 0.005,
    }
    return {
        "samples": {
            name: {
                "prefill": [10 * value] * 3,
                "decode": [value, 2 * value, 0.5 * value],
                "decode@32": [value] * 3,
                "decode@512": [1.25 * value] * 3,
                "outside_kernel": [0.05, 0.5, 0.04],
            }
            for name, value in seconds.items()
        },
        "opened": {name: {"load_seconds": 0.25} for name in seconds},
        "bytes": {name: int(value * 1e10) for name, value in seconds.items()},
        "memory": {"run": 250e6, "weights": 80e6, "kv": 20e6, "export": 300e6},
        "import_seconds": 0.1,
    }


def test_bars_compare_what_they_name() -> None:
    found = {f"{what} {relation}": figure for what, figure, relation, _ in gpt2_124m(results())}
    assert found["int4 decode / fp32 ≥"] == pytest.approx(5.0)
    assert found["int4 b128, int4 head decode / fp32 ≥"] == pytest.approx(8.0)
    assert found["int8 decode / fp32 ≥"] == pytest.approx(2.5)
    assert found["int8 prefill / fp32 ≥"] == pytest.approx(2.5)
    assert found["int8: decode rate at 512 / at 32 ≥"] == pytest.approx(0.8)
    assert found["Python's share of an int4 step ≤"] == 0.05
    assert found["run int4: peak RSS above weights and KV, MB ≤"] == 150
    assert found["export int4: peak RSS, MB ≤"] == 300
    assert found["import pocketlm, s ≤"] == 0.1


def test_bars_of_llama_compare_int4_with_8_bits() -> None:
    found = {f"{what} {relation}": figure for what, figure, relation, _ in llama_1b(results())}
    assert found["int4 decode / int8-weight ≥"] == pytest.approx(2.0)
    assert found["int8 prefill / int4 ≥"] == pytest.approx(0.5)
    assert found["run int4: peak RSS less 100 MB / (weights + KV) ≤"] == pytest.approx(1.5)


def test_every_scorecard_is_of_a_known_shape() -> None:
    assert SCORECARDS.keys() <= shapes.SHAPES.keys()


def test_table_has_rates_of_the_median_and_of_the_best_round() -> None:
    lines = table(results()).splitlines()
    assert len(lines) == 2 + 5
    assert lines[2] == "| fp32 | 400 | 0.25 | 320 | 25 | 50 | 1.00 |"
    assert lines[5].endswith("| 1600 | 125 | 250 | 5.00 |")
