"""Checkpoints of well-known shapes: they export, run, and have the sizes of their names."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from checkpoint_files import gpt2_config

from pocketlm.benchmarks import shapes
from pocketlm.export.architectures import find_architecture
from pocketlm.export.checkpoint import open_checkpoint
from pocketlm.export.folder import ModelFolder
from pocketlm.export.writing import export_model
from pocketlm.runtime.session import Session
from pocketlm.runtime.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    """The model folder of a tiny shape written by ``shapes``."""
    root = tmp_path_factory.mktemp("shapes")
    with pytest.MonkeyPatch.context() as patch:
        tiny = gpt2_config(vocab_size=300, n_positions=600, n_embd=32)
        patch.setitem(shapes.SHAPES, "tiny", tiny)
        checkpoint = shapes.write_checkpoint(root / "source", "tiny")
    return export_model(open_checkpoint(checkpoint), root / "out")


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
