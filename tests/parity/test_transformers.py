"""Our float graphs of Llama and its kin against transformers, over the cases of the unit tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_files import write_checkpoint
from llama_checkpoints import CASES, LLAMA3, LONGROPE, Case, llama_config, llama_tensors
from numpy.typing import NDArray

from pocketlm.export.checkpoint import open_checkpoint
from pocketlm.export.writing import export_model
from pocketlm.runtime.chunks import prefill
from pocketlm.runtime.session import Session

pytestmark = pytest.mark.optimum

IDS = [(7 * i + 3) % 97 for i in range(20)]
# Of the largest logit. The bar is 1e-3; measured 2e-6, so that a wrong field shows.
TOLERANCE = 1e-4
# Older files may lack the prefix, transformers does not.
LOADABLE = {name: case for name, case in CASES.items() if case.prefix}


def theirs(folder: Path, ids: list[int], keep: int) -> NDArray[np.float32]:
    """The last ``keep`` rows of logits that transformers computes in float32."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, torch_dtype=torch.float32, attn_implementation="eager"
    )
    with torch.no_grad():
        logits = model(torch.tensor([ids]), logits_to_keep=keep).logits[0]
    found: NDArray[np.float32] = logits.numpy()
    return found


def checkpoint(case: Case, folder: Path) -> Path:
    config = llama_config(case.model_type, **case.config)
    tensors = llama_tensors(config, prefix=case.prefix)
    return write_checkpoint(folder, config, tensors, dtype=case.dtype, shards=case.shards)


@pytest.mark.parametrize("case", list(LOADABLE.values()), ids=list(LOADABLE))
def test_logits_equal_transformers(case: Case, tmp_path: Path) -> None:
    source = checkpoint(case, tmp_path / "in")
    expected = theirs(source, IDS, len(IDS))
    session = Session(export_model(open_checkpoint(source), tmp_path / "out"), threads=1)
    found = session.all_logits(IDS, session.new_cache())
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max())


def test_llama3_rotation_equals_transformers_beyond_8192_positions(tmp_path: Path) -> None:
    config: dict[str, Any] = {
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 131072,
        "rope_theta": 500000.0,
        "rope_scaling": LLAMA3 | {"factor": 32.0, "original_max_position_embeddings": 8192},
    }
    source = checkpoint(Case("llama", config), tmp_path / "in")
    ids = np.random.default_rng(3).integers(0, 97, 9000).tolist()
    expected = theirs(source, ids, 1)[-1]
    session = Session(export_model(open_checkpoint(source), tmp_path / "out"), threads=2)
    found = prefill(session, ids, session.new_cache())
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max())


GROWING: dict[str, dict[str, Any]] = {
    "longrope": {"rope_scaling": LONGROPE, "original_max_position_embeddings": 24},
    "dynamic": {"rope_scaling": {"type": "dynamic", "factor": 4.0}, "max_position_embeddings": 24},
}


@pytest.mark.parametrize("name", GROWING)
def test_text_that_outgrows_the_original_context_equals_transformers_with_its_cache(
    name: str, tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    source = checkpoint(Case("llama", GROWING[name]), tmp_path / "in")
    ids = [(7 * i + 3) % 97 for i in range(40)]
    model = transformers.AutoModelForCausalLM.from_pretrained(
        source, torch_dtype=torch.float32, attn_implementation="eager"
    )
    session = Session(export_model(open_checkpoint(source), tmp_path / "out"), threads=1)
    cache, theirs_cache = session.new_cache(), transformers.DynamicCache()
    for part in (ids[:20], *([token] for token in ids[20:])):
        with torch.no_grad():
            made = model(torch.tensor([part]), past_key_values=theirs_cache, use_cache=True)
        expected = made.logits[0, -1].numpy()
        found = prefill(session, part, cache) if len(part) > 1 else session.step(part, cache)
        np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max())


@pytest.mark.parametrize("kind", ["yarn", "longrope", "dynamic"])
def test_rotation_equals_transformers_far_beyond_the_original_context(
    kind: str, tmp_path: Path
) -> None:
    scalings: dict[str, dict[str, Any]] = {
        "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048},
        "longrope": LONGROPE,
        "dynamic": {"type": "dynamic", "factor": 4.0},
    }
    config: dict[str, Any] = {
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 2048 if kind == "dynamic" else 8192,
        "rope_scaling": scalings[kind],
    } | ({"original_max_position_embeddings": 2048} if kind == "longrope" else {})
    source = checkpoint(Case("llama", config), tmp_path / "in")
    ids = np.random.default_rng(3).integers(0, 97, 5000).tolist()
    expected = theirs(source, ids, 1)[-1]
    session = Session(export_model(open_checkpoint(source), tmp_path / "out"), threads=2)
    found = prefill(session, ids, session.new_cache())
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max())
