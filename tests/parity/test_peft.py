"""LoRA adapters that peft saved, merged by us and by peft: logits of the folder and of torch.

Tiny random models made by transformers, adapters of peft with every parameter drawn anew. Where the
head shares the embedding, what counts is what the adapter computes before it is merged: see
``export.lora.merging``.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_files import write_tokenizer

from pocketlm.export.checkpoint import open_checkpoint
from pocketlm.export.lora.adapter import open_adapter
from pocketlm.export.lora.merging import merged
from pocketlm.export.writing import export_model
from pocketlm.runtime.session import Session

pytestmark = pytest.mark.optimum

TOLERANCE = 1e-4  # of the largest logit
VOCAB = 300
LLAMA = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
TIED = LLAMA | {"tie_word_embeddings": True}
GPT = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128}
PHI = LLAMA | {"pad_token_id": 0}
BIASED = LLAMA | {"attention_bias": True}


@dataclass(frozen=True)
class Case:
    """A model's kind and config, and the fields of its adapter."""

    kind: str
    config: dict[str, Any]
    lora: dict[str, Any] = field(default_factory=dict)
    merges: bool = True  # whether peft's merge computes what was trained


QV = {"target_modules": ["q_proj", "v_proj"]}
# In the order in which peft saves them: the first that matches counts.
PATTERNS = {
    "target_modules": "all-linear",
    "rank_pattern": {r"layers\.1\..*_proj": 5, "model.layers.0.mlp.up_proj": 1, "q_proj": 2},
    "alpha_pattern": {".*down_proj": 3, "layers.0.self_attn.v_proj": 32},
}
CASES = {
    "llama": Case("llama", LLAMA, QV),
    "llama, rank-stabilized": Case("llama", LLAMA, QV | {"use_rslora": True}),
    "llama, patterns": Case("llama", LLAMA, PATTERNS),
    "llama, regex": Case("llama", LLAMA, {"target_modules": r".*\.layers\.[01]\..*(k|o)_proj"}),
    "llama, one layer": Case("llama", LLAMA, QV | {"layers_to_transform": [1]}),
    "llama, excluded": Case(
        "llama", LLAMA, QV | {"exclude_modules": ["layers.1.self_attn.q_proj"]}
    ),
    "llama, embedding and head": Case(
        "llama", LLAMA, {"target_modules": ["embed_tokens", "lm_head", "q_proj"]}
    ),
    "llama, saved": Case(
        "llama", LLAMA, QV | {"modules_to_save": ["embed_tokens", "lm_head", "norm"]}
    ),
    "llama, all biases": Case("llama", BIASED, QV | {"bias": "all"}),
    "llama, own biases": Case("llama", BIASED, QV | {"bias": "lora_only"}),
    "llama, biases of B": Case("llama", BIASED, QV | {"lora_bias": True}),
    "llama, tokens": Case("llama", LLAMA, QV | {"trainable_token_indices": [7, 3, 299]}),
    "llama, tied": Case("llama", TIED, {"target_modules": "all-linear"}),
    "llama, tied, embedding": Case(
        "llama", TIED, {"target_modules": ["embed_tokens", "q_proj"]}, merges=False
    ),
    "llama, tied, head": Case(
        "llama", TIED, {"target_modules": ["lm_head", "q_proj"]}, merges=False
    ),
    "llama, tied together": Case(
        "llama",
        TIED,
        {"target_modules": ["embed_tokens", "q_proj"], "ensure_weight_tying": True},
        merges=False,
    ),
    "llama, tied, saved embedding": Case("llama", TIED, QV | {"modules_to_save": ["embed_tokens"]}),
    "llama, tied, saved head": Case("llama", TIED, QV | {"modules_to_save": ["lm_head"]}),
    "llama, tied, saved together": Case(
        "llama", TIED, QV | {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}
    ),
    "llama, tied, tokens": Case("llama", TIED, QV | {"trainable_token_indices": [7, 3, 299]}),
    "llama, tied, tokens of both": Case(
        "llama",
        TIED,
        QV | {"trainable_token_indices": {"embed_tokens": [7, 3], "lm_head": [5]}},
        merges=False,
    ),
    "gpt2": Case("gpt2", GPT, {"target_modules": ["c_attn"]}),
    "gpt2, all": Case(
        "gpt2", GPT, {"target_modules": ["c_attn", "c_proj", "c_fc"], "bias": "all", "r": 6}
    ),
    "gpt2, fan-in said": Case("gpt2", GPT, {"target_modules": ["c_proj"], "fan_in_fan_out": True}),
    "gpt2, biases of B": Case("gpt2", GPT, {"target_modules": ["c_fc"], "lora_bias": True}),
    "gpt2, embeddings": Case("gpt2", GPT, {"target_modules": ["wte", "wpe", "c_fc"]}, merges=False),
    "gpt2, saved": Case(
        "gpt2", GPT, {"target_modules": ["c_attn"], "modules_to_save": ["ln_f", "wpe"]}
    ),
    "phi3": Case("phi3", PHI, {"target_modules": ["qkv_proj", "gate_up_proj", "o_proj"]}),
    "qwen2": Case("qwen2", LLAMA, {"target_modules": "all-linear", "bias": "all"}),
    "gemma3": Case(
        "gemma3_text",
        LLAMA | {"head_dim": 16, "sliding_window": 16},
        {"target_modules": "all-linear", "modules_to_save": ["norm", "q_norm"]},
    ),
}


@pytest.fixture(scope="module", autouse=True)
def offline() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


@pytest.fixture(autouse=True)
def quiet() -> Any:
    """Peft warns of tied weights, of fan_in_fan_out, and of embeddings that it saves."""
    pytest.importorskip("peft")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def make_base(case: Case, folder: Path) -> None:
    """Saves a random model with a tokenizer; weights are wide enough to matter."""
    import torch
    import transformers

    torch.manual_seed(0)
    ids = {"vocab_size": VOCAB, "bos_token_id": 299, "eos_token_id": 299}
    config = transformers.AutoConfig.for_model(case.kind, **ids, **case.config)
    model = transformers.AutoModelForCausalLM.from_config(config)
    draw(model, 0.15)
    model.save_pretrained(folder)
    write_tokenizer(folder, VOCAB)


def draw(model: Any, scale: float, only: str = "") -> None:
    """Random numbers in the parameters that are trained."""
    import torch

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and only in name:
                if parameter.ndim > 1:
                    parameter.normal_(0, scale)
                else:
                    parameter.add_(0.1 * torch.randn_like(parameter))


def load(folder: Path) -> Any:
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")


def make_adapter(base: Path, folder: Path, fields: dict[str, Any], seed: int = 1) -> None:
    """Saves an adapter of ``base`` with random numbers in all that is trained."""
    import peft
    import torch

    torch.manual_seed(seed)
    config = peft.LoraConfig(task_type="CAUSAL_LM", **{"r": 4, "lora_alpha": 8} | fields)
    model = peft.get_peft_model(load(base), config)
    draw(model, 0.2)
    model.save_pretrained(folder)


def logits_of_torch(model: Any, ids: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    import torch

    with torch.no_grad():
        found = model.eval()(input_ids=torch.from_numpy(ids)[None], use_cache=False).logits[0]
    return np.asarray(found)


def logits_of_ours(base: Path, adapters: list[str], out: Path) -> np.ndarray[Any, Any]:
    opened = [open_adapter(adapter) for adapter in adapters]
    session = Session(export_model(merged(open_checkpoint(base), opened), out), threads=1)
    return np.asarray(session.all_logits(IDS, session.new_cache()))


IDS = np.append(np.random.default_rng(3).integers(0, VOCAB, 60), [3, 7, 5, 299])


def difference(found: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("name", CASES)
def test_logits_equal_those_of_peft(name: str, tmp_path: Path) -> None:
    import peft

    case, base, lora = CASES[name], tmp_path / "base", tmp_path / "lora"
    make_base(case, base)
    make_adapter(base, lora, case.lora)
    found = logits_of_ours(base, [str(lora)], tmp_path / "out")
    model = peft.PeftModel.from_pretrained(load(base), lora)
    expected = logits_of_torch(model, IDS)
    assert difference(found, expected) < TOLERANCE
    if case.merges:
        expected = logits_of_torch(model.merge_and_unload(), IDS)
        assert difference(found, expected) < TOLERANCE
    plain = logits_of_torch(load(base), IDS)
    assert difference(plain, expected) > 100 * TOLERANCE  # the adapter does something


def test_weighted_adapters_add_up_as_in_peft(tmp_path: Path) -> None:
    import peft

    base, first, second = (tmp_path / name for name in ("base", "first", "second"))
    make_base(CASES["llama"], base)
    make_adapter(base, first, QV, seed=1)
    make_adapter(base, second, {"target_modules": ["v_proj", "up_proj"], "r": 3}, seed=2)
    model = peft.PeftModel.from_pretrained(load(base), first, adapter_name="first")
    model.load_adapter(second, adapter_name="second")
    model.base_model.set_adapter(["first", "second"])
    for layer in model.modules():
        if isinstance(layer, peft.tuners.lora.LoraLayer):
            layer.set_scale("first", 0.5)
            layer.set_scale("second", 2)
    expected = logits_of_torch(model, IDS)
    found = logits_of_ours(base, [f"{first}:0.5", f"{second}:2"], tmp_path / "out")
    assert difference(found, expected) < TOLERANCE
