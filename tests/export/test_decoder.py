"""The loop that all families share: it asks for every tensor once, and a family is a short file.

Levels: builds, and matches reference (the logits of a family that computes the same).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_files import write_checkpoint
from graph_digests import CASES, checkpoint_of, in_memory
from llama_checkpoints import llama_config, llama_tensors

from pocketlm.export import architectures
from pocketlm.export.architectures import find_architecture, known_architectures
from pocketlm.export.checkpoint import Checkpoint, open_checkpoint
from pocketlm.export.external_data import weights_of
from pocketlm.export.graph import Graph
from pocketlm.export.stream import Stream
from pocketlm.export.writing import export_model
from pocketlm.runtime.session import Session

Shapes = dict[str, tuple[int, ...]]


def used_by_the_graph(checkpoint: Checkpoint) -> Shapes:
    """Every parameter that some node reads."""
    model, _ = find_architecture(checkpoint.config).build(checkpoint)
    used = {value.name for value in model.graph.initializers.values() if value.uses()}
    learned = [weight for weight in weights_of(model) if weight.learned and weight.name in used]
    return {str(weight.name): tuple(weight.shape.numpy()) for weight in learned}


@pytest.mark.parametrize("name", CASES)
def test_tensor_shapes_are_the_tensors_that_the_graph_uses(name: str) -> None:
    checkpoint = checkpoint_of(name)
    named = find_architecture(checkpoint.config).tensor_shapes(checkpoint.config)
    head_bias = {"lm_head.bias": (checkpoint.config["vocab_size"],)}  # where there is one, unasked
    more = head_bias if "lm_head.bias" in checkpoint.tensors else {}
    assert list((named | more).items()) == list(used_by_the_graph(checkpoint).items())


@pytest.mark.parametrize("model_type", ["llama", "mistral", "olmo2", "gemma3_text"])
def test_a_bias_that_the_config_asks_for_is_added(model_type: str) -> None:
    config = llama_config(model_type, attention_bias=True, mlp_bias=True)
    tensors = llama_tensors(config)
    used = used_by_the_graph(in_memory(config, tensors))
    assert used.keys() == {name.removeprefix("model.") for name in tensors}


# A family is a file ------------------------------------------------------------------------------

NEW_FAMILY = '''
"""Llama without a gate: x += fc2(relu(fc1(h)))."""

from dataclasses import dataclass, replace

from pocketlm.export.architectures import llama
from pocketlm.export.layers import activation, linear


@dataclass(frozen=True)
class Config(llama.Config):
    hidden_act: str = "relu"


def block(g, config, stream, attend):
    d, f = config.hidden_size, config.intermediate_size
    x = stream.rms_norm("before_attention")
    with g.scope("self_attn"):
        attended = attend(*llama.projections(g, config, x))
        stream.add_linear(attended, "o_proj", (d, config.query_size))
    x = stream.rms_norm("before_mlp")
    with g.scope("mlp"):
        hidden = activation(g, linear(g, x, "fc1", (f, d)), config.hidden_act)
        stream.add_linear(hidden, "fc2", (d, f))


ARCHITECTURE = replace(llama.ARCHITECTURE, config=Config, block=block)
'''
RENAMED = {
    "input_layernorm": "before_attention",
    "post_attention_layernorm": "before_mlp",
    "mlp.gate_proj": "mlp.fc1",
    "mlp.down_proj": "mlp.fc2",
}


def test_a_new_family_is_one_short_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It computes what a Llama does whose ``up_proj`` is 1 for every input."""
    config = llama_config(hidden_act="relu", mlp_bias=True)
    tensors: dict[str, Any] = llama_tensors(config)
    for name, values in tensors.items():
        if "up_proj" in name:
            values[:] = name.endswith("bias")
        elif ".mlp." in name and name.endswith("bias"):
            values[:] = 0
    own = {}
    for name, values in tensors.items():
        if "up_proj" not in name and not name.endswith("bias"):
            for old, new in RENAMED.items():
                name = name.replace(old, new)
            own[name] = values

    (tmp_path / "ungated.py").write_text(NEW_FAMILY)
    monkeypatch.setattr(architectures, "__path__", [*architectures.__path__, str(tmp_path)])
    assert "ungated" in known_architectures()
    ungated = {key: value for key, value in config.items() if key != "mlp_bias"}
    ungated["model_type"] = "ungated"
    logits = []
    for name, stored, weights in (("llama", config, tensors), ("ungated", ungated, own)):
        source = write_checkpoint(tmp_path / name, stored, weights)
        folder = export_model(open_checkpoint(source), tmp_path / f"{name}-out")
        session = Session(folder, threads=1)
        logits.append(session.all_logits([3, 1, 4, 1, 5], session.new_cache()))
    np.testing.assert_allclose(logits[0], logits[1], rtol=0, atol=1e-5 * np.abs(logits[0]).max())


# The stream --------------------------------------------------------------------------------------


def test_a_branch_that_waits_is_not_lost() -> None:
    g = Graph("stream")
    x, branch = (g.input(name, np.float32, ["batch_size", 1, 8]) for name in ("x", "branch"))
    stream = Stream(g, x, width=8, epsilon=1e-5)
    assert stream.x is x
    stream.add(branch)
    for use in (
        lambda: stream.add_now(branch, "sum"),
        lambda: stream.x,
    ):
        with pytest.raises(AssertionError, match="a branch waits for the next norm"):
            use()
