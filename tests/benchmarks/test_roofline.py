"""Bytes a token reads, against a count by hand of the tensors of tiny models."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from checkpoint_files import gpt2_config, write_checkpoint
from llama_checkpoints import llama_config, llama_tensors

from pocketlm.benchmarks.speed.roofline import kv_bytes_per_token, weight_bytes_per_token
from pocketlm.export.architectures import find_architecture
from pocketlm.export.checkpoint import open_checkpoint
from pocketlm.export.folder import ModelFolder
from pocketlm.export.writing import export_model
from pocketlm.quantize.run import precision_of

WIDTH, VOCABULARY = 32, 300


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = gpt2_config(vocab_size=VOCABULARY, n_positions=64, n_embd=WIDTH)
    return write_checkpoint(tmp_path_factory.mktemp("roofline") / "gpt2", config)


def test_gpt2_reads_all_but_one_row_of_the_positions(checkpoint: Path, tmp_path: Path) -> None:
    """The embedding is the head as well, so that it is read whole, and once."""
    config = gpt2_config(vocab_size=VOCABULARY, n_positions=64, n_embd=WIDTH)
    shapes = find_architecture(config).tensor_shapes(config)
    numbers = {name: math.prod(shape) for name, shape in shapes.items()}
    positions = next(size for name, size in numbers.items() if name.endswith("wpe.weight"))
    folder = export_model(open_checkpoint(checkpoint), tmp_path / "fp32")
    expected = 4 * (sum(numbers.values()) - positions + WIDTH)
    assert weight_bytes_per_token(folder) == expected


@pytest.mark.parametrize("precision", ["int8", "int8-weight", "int4"])
def test_a_quantized_gpt2_reads_its_weights_but_for_the_positions(
    checkpoint: Path, tmp_path: Path, precision: str
) -> None:
    folder = export_model(
        open_checkpoint(checkpoint), tmp_path / precision, precision_of(precision)
    )
    positions = 4 * (64 - 1) * WIDTH
    # The file is longer by what aligns the tensors: 4096 bytes for large ones.
    padding = folder.weights_bytes - positions - weight_bytes_per_token(folder)
    assert 0 <= padding < 4096 * 60


@pytest.mark.parametrize("tied", [False, True])
def test_llama_reads_one_row_of_an_embedding_that_is_not_the_head(
    tmp_path: Path, tied: bool
) -> None:
    config = llama_config(tie_word_embeddings=tied)
    source = write_checkpoint(tmp_path / "llama", config, llama_tensors(config))
    folder = export_model(open_checkpoint(source), tmp_path / "out")
    shapes = find_architecture(config).tensor_shapes(config)
    everything = sum(math.prod(shape) for shape in shapes.values())
    width, vocabulary = config["hidden_size"], config["vocab_size"]
    lookup = 0 if tied else (vocabulary - 1) * width
    angles = 2 * config["head_dim"] // 2  # a row of cosines, a row of sines
    assert weight_bytes_per_token(folder) == 4 * (everything - lookup + angles)


def test_keys_and_values_are_those_of_every_token_attended_to(tiny_folder: ModelFolder) -> None:
    one = tiny_folder.shape.kv_bytes_per_token
    for depth, generation in [(0, 1), (0, 4), (10, 3)]:
        attended = [depth + i for i in range(1, generation + 1)]
        expected = one * sum(attended) / generation
        assert kv_bytes_per_token(tiny_folder, depth, generation) == expected
