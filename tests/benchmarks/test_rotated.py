"""A rotated checkpoint is the same function of tokens, with none of its weights as they were."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from checkpoint_files import gpt2_config, gpt2_tensors, write_checkpoint
from llama_checkpoints import llama_config, llama_tensors

from pocketlm.benchmarks.rotated import rotated, write_rotated
from pocketlm.export.checkpoint import open_checkpoint
from pocketlm.export.errors import CheckpointError
from pocketlm.export.writing import export_model
from pocketlm.runtime.session import Session


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_rotated_llama_has_the_logits_of_its_source(tmp_path: Path, tied: bool) -> None:
    config = llama_config(tie_word_embeddings=tied)
    tensors = llama_tensors(config)
    source = write_checkpoint(tmp_path / "source", config, tensors)
    (tmp_path / "rotated").mkdir()
    write_rotated(source, tmp_path / "rotated")
    ids = np.random.default_rng(0).integers(0, config["vocab_size"], 24).tolist()
    found = []
    for name in ("source", "rotated"):
        folder = export_model(open_checkpoint(tmp_path / name), tmp_path / f"{name}-fp32")
        session = Session(folder, threads=1)
        found.append(session.all_logits(ids, session.new_cache()))
    assert np.abs(found[1] - found[0]).max() < 1e-5 * np.abs(found[0]).max()
    turned = open_checkpoint(tmp_path / "rotated").tensors
    before = open_checkpoint(source).tensors
    for name, tensor in before.items():
        if len(tensor.shape) > 1:
            assert np.abs(turned[name].read() - tensor.read()).max() > 0.1 * tensor.read().std()


def test_what_is_no_llama_is_refused(tmp_path: Path) -> None:
    config = llama_config()
    tensors = llama_tensors(config)
    weights = {name: np.asarray(values, np.float32) for name, values in tensors.items()}
    weights["model.layers.0.self_attn.q_proj.bias"] = np.zeros(4, np.float32)
    with pytest.raises(CheckpointError, match="found the tensor model.layers.0.self_attn.q_proj.b"):
        rotated(weights, config)
    gpt2 = gpt2_config(vocab_size=97)
    source = write_checkpoint(tmp_path / "gpt2", gpt2, gpt2_tensors(gpt2))
    with pytest.raises(CheckpointError, match="found model_type 'gpt2', expected 'llama'"):
        write_rotated(source, tmp_path)
