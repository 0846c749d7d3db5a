"""Rotations: two spellings mean the same, long texts need no tables, and parts of one do not show.

Levels: builds, and matches reference (the same graph spelled otherwise, the NumPy twin).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_files import write_checkpoint
from llama_checkpoints import LONGROPE, llama_config, llama_tensors
from reference import llama

from pocketlm.export.checkpoint import open_checkpoint
from pocketlm.export.errors import CheckpointError
from pocketlm.export.folder import ModelFolder
from pocketlm.export.writing import export_model
from pocketlm.runtime.chunks import prefill
from pocketlm.runtime.prefix_cache import PrefixCache
from pocketlm.runtime.prompt_cache import Owner, PromptCacheFile
from pocketlm.runtime.request import Request
from pocketlm.runtime.reuse import ReusableCache
from pocketlm.runtime.session import Session

IDS = [(7 * i + 3) % 97 for i in range(40)]
FULL, SLIDING = "full_attention", "sliding_attention"


def exported(config: dict[str, Any], root: Path) -> ModelFolder:
    source = write_checkpoint(root / "in", config, llama_tensors(config))
    return export_model(open_checkpoint(source), root / "out")


# Two spellings of one config: fields of the older, and of the newer one.
SPELLINGS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "share of a head": (
        "phi3",
        {"partial_rotary_factor": 0.5},
        {
            "partial_rotary_factor": None,
            "rope_theta": None,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.5,
            },
        },
    ),
    "share of a head, phi": (
        "phi",
        {"partial_rotary_factor": 1.0},
        {"partial_rotary_factor": None, "rope_parameters": {"partial_rotary_factor": 1.0}},
    ),
    "neox": (
        "gpt_neox",
        {"rotary_pct": 1.0, "rotary_emb_base": 500.0},
        {
            "rotary_pct": None,
            "rotary_emb_base": None,
            "rope_parameters": {"rope_theta": 500.0, "partial_rotary_factor": 1.0},
        },
    ),
    "kinds of layers": (
        "gemma3_text",
        {"rope_theta": 5000.0, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
        {
            "rope_theta": None,
            "rope_local_base_freq": None,
            "rope_parameters": {
                FULL: {"rope_type": "linear", "factor": 8.0, "rope_theta": 5000.0},
                SLIDING: {"rope_type": "default", "rope_theta": 500.0},
            },
        },
    ),
    "longrope": (
        "llama",
        {"rope_scaling": LONGROPE, "original_max_position_embeddings": 16},
        {
            "rope_theta": None,
            "rope_parameters": LONGROPE
            | {"rope_type": "longrope", "type": "su", "rope_theta": 10000.0}
            | {"original_max_position_embeddings": 16},
        },
    ),
    "su": (
        "llama",
        {"rope_scaling": LONGROPE, "original_max_position_embeddings": 16},
        {"rope_scaling": LONGROPE | {"type": "su"}, "original_max_position_embeddings": 16},
    ),
    "whole head": ("llama", {}, {"rope_parameters": {"partial_rotary_factor": 1.0}}),
    "nulls": ("llama", {}, {"rope_parameters": {"rope_type": None, "factor": None, "alpha": None}}),
    "no window": (
        "qwen2",
        {"sliding_window": None},
        {"max_window_layers": 0, "sliding_window": 0, "layer_types": [FULL, FULL]},
    ),
    "windows listed": (
        "qwen2",
        {"use_sliding_window": True},
        {
            "use_sliding_window": True,
            "max_window_layers": 0,
            "layer_types": [FULL, SLIDING],
        },
    ),
    "windows from the first layer on": (
        "qwen3",
        {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0},
        {"use_sliding_window": True, "sliding_window": 4, "layer_types": [SLIDING, SLIDING]},
    ),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_both_spellings_are_one_graph(name: str, tmp_path: Path) -> None:
    model_type, *spellings = SPELLINGS[name]
    older, newer = (
        exported(llama_config(model_type) | fields, tmp_path / str(i)).files
        for i, fields in enumerate(spellings)
    )
    assert older["model.onnx"] == newer["model.onnx"]
    assert older["model.onnx_data"] == newer["model.onnx_data"]


def test_the_older_spelling_wins(tmp_path: Path) -> None:
    config = llama_config(rope_scaling={"type": "linear", "factor": 2.0})
    both = config | {"rope_parameters": {"rope_type": "linear", "factor": 4.0}}
    files = [exported(c, tmp_path / str(i)).files for i, c in enumerate((config, both))]
    assert files[0]["model.onnx_data"] == files[1]["model.onnx_data"]


def test_layers_listed_as_windowed_need_a_window(tmp_path: Path) -> None:
    config = llama_config("smollm3", layer_types=[SLIDING, FULL])
    with pytest.raises(CheckpointError, match="sliding_window is .None., expected one"):
        exported(config, tmp_path)


# Size ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("context", [131072, 1048576])
def test_a_long_context_costs_no_disk(context: int, tmp_path: Path) -> None:
    short = exported(llama_config(), tmp_path / "short")
    long = exported(llama_config(max_position_embeddings=context), tmp_path / "long")
    assert long.shape.context_length == context
    tables = 2 * 64 * 8 * 4  # of the short one: cosines and sines
    assert long.weights_bytes <= short.weights_bytes - tables


def test_dynamic_is_for_longer_texts_than_the_model_was_trained_with(tmp_path: Path) -> None:
    scaling = {"type": "dynamic", "factor": 2.5}
    assert exported(llama_config(rope_scaling=scaling), tmp_path).shape.context_length == 160


# What depends on how long the text is ------------------------------------------------------------

GROWING: dict[str, dict[str, Any]] = {
    "longrope": {"rope_scaling": LONGROPE, "original_max_position_embeddings": 24},
    "dynamic": {
        "rope_scaling": {"type": "dynamic", "factor": 4.0},
        "max_position_embeddings": 24,
    },
}


@pytest.mark.parametrize("name", GROWING)
def test_a_prompt_in_parts_is_rotated_as_the_whole(name: str, tmp_path: Path) -> None:
    config = llama_config(**GROWING[name])
    session = Session(exported(config, tmp_path), threads=1)
    expected = llama.forward(config, llama_tensors(config), IDS)[-1]
    for size in (4, 16, 64):
        found = prefill(session, IDS, session.new_cache(), chunk_size=size)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("name", GROWING)
def test_what_the_cache_holds_stays_as_it_was_rotated(name: str, tmp_path: Path) -> None:
    """Token by token over the crossing: alone, several at once and as a row of a batch alike."""
    config = llama_config(**GROWING[name])
    session = Session(exported(config, tmp_path), threads=1)
    caches = [cache() for cache in [session.new_caches()] * 3]
    for cache in caches:
        prefill(session, IDS[:20], cache)
    alone = [session.step([token], caches[0]) for token in IDS[20:32]]
    guessed = session.all_logits(IDS[20:32], caches[1])
    other = session.new_caches()
    rows = [other(), other()]
    for row in rows:
        prefill(session, IDS[:20], row)
    together = [
        session.step_together([(row, [token]) for row in rows])[0].copy() for token in IDS[20:32]
    ]
    tolerance = 1e-5 * np.abs(guessed).max()
    np.testing.assert_allclose(np.array(alone), guessed, rtol=0, atol=tolerance)
    np.testing.assert_allclose(np.array(together), guessed, rtol=0, atol=tolerance)
    whole = llama.forward(config, llama_tensors(config), IDS[:32])
    assert np.abs(guessed[-1] - whole[-1]).max() > 100 * tolerance  # all of it rotated anew


def test_phi_4_mini_is_built_from_the_fields_of_its_config(tmp_path: Path) -> None:
    """Those of microsoft/Phi-4-mini-instruct, its sizes but the head's reduced."""
    pairs = 48  # 3/4 of heads of 128
    config: dict[str, Any] = {
        "architectures": ["Phi3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 96,
        "embd_pdrop": 0.0,
        "eos_token_id": 96,
        "full_attn_mod": 1,
        "hidden_act": "silu",
        "hidden_size": 384,
        "initializer_range": 0.02,
        "intermediate_size": 96,
        "interpolate_factor": 1,
        "lm_head_bias": False,
        "max_position_embeddings": 131072,
        "mlp_bias": False,
        "model_type": "phi3",
        "num_attention_heads": 3,
        "num_hidden_layers": 2,
        "num_key_value_heads": 1,
        "original_max_position_embeddings": 32,
        "pad_token_id": 96,
        "partial_rotary_factor": 0.75,
        "resid_pdrop": 0.0,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "long_factor": np.linspace(1, 64, pairs).tolist(),
            "short_factor": [1.0] * pairs,
            "type": "longrope",
        },
        "rope_theta": 10000.0,
        "sliding_window": 262144,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.45.0",
        "use_cache": True,
        "vocab_size": 97,
    }
    session = Session(exported(config, tmp_path), threads=1)
    for count in (20, 40):
        expected = llama.forward(config, llama_tensors(config), IDS[:count])[-1]
        found = prefill(session, IDS[:count], session.new_cache())
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("name", GROWING)
def test_what_was_rotated_otherwise_is_not_kept(name: str, tmp_path: Path) -> None:
    """A prompt up to the original context shares with others; a longer one is computed anew."""
    session = Session(exported(llama_config(**GROWING[name]), tmp_path), threads=1)
    assert session.rotated_alike == 24
    lengths = {24: (12, 24), 23: (12, 23), 40: (12, 40)}
    for count, (first, second) in lengths.items():
        cache = ReusableCache(session)
        logits = []
        for length in (first, second):
            sequence = cache.start(Request(IDS[:length], chunk_size=4), exactly=True)
            while sequence.in_prompt:
                logits.append(session.step(sequence.feed(), sequence.cache))
                sequence.take(logits[-1])
        assert (sequence.num_reused > 0) == (count <= 24)
        alone = prefill(session, IDS[:second], session.new_cache(), chunk_size=4)
        np.testing.assert_array_equal(logits[-1], alone)


@pytest.mark.parametrize("name", GROWING)
def test_a_long_prompt_that_was_given_up_leaves_nothing_to_shorter_ones(
    name: str, tmp_path: Path
) -> None:
    """Its first chunks were rotated for all of it: in memory, in a file and in a cache."""
    folder = exported(llama_config(**GROWING[name]), tmp_path)
    session = Session(folder, threads=1)
    kept, cache = PrefixCache(session.kv_bytes_per_token), ReusableCache(session)
    file = PromptCacheFile(tmp_path / "long.cache", Owner.of(folder, session))
    given_up = cache.start(Request(IDS[:40], chunk_size=4))
    for _ in range(3):
        given_up.take(session.step(given_up.feed(), given_up.cache))
    kept.keep(given_up)
    file.keep(given_up)
    request = Request(IDS[:20], chunk_size=4)
    prompt = request.seen(session.shape.context_length, session.rotated_alike)
    file = PromptCacheFile(tmp_path / "long.cache", Owner.of(folder, session))
    assert kept.find(prompt) is None
    assert file.find(prompt) is None
    copied = cache.copy()
    assert cache.start(request, exactly=True).num_reused == 0
    inexact = copied.start(request)  # as in a conversation that was cut
    assert inexact.num_reused == 12
    kept.keep(inexact)
    assert kept.find(prompt) is None
