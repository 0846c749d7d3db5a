"""Small adapters in the form in which peft saves them, and the slow way to merge one."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from checkpoint_files import safetensors_bytes
from numpy.typing import NDArray

Array = NDArray[Any]
PREFIX = "base_model.model."
BASE = "org/base"


def lora_config(**fields: Any) -> dict[str, Any]:
    """adapter_config.json with what peft 0.21 writes, some of it replaced."""
    return {
        "alora_invocation_tokens": None,
        "alpha_pattern": {},
        "base_model_name_or_path": BASE,
        "bias": "none",
        "exclude_modules": None,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "layer_replication": None,
        "layers_to_transform": None,
        "loftq_config": {},
        "lora_alpha": 8,
        "lora_bias": False,
        "lora_dropout": 0.05,
        "megatron_core": "megatron.core",
        "modules_to_save": None,
        "peft_type": "LORA",
        "peft_version": "0.21.2",
        "qalora_group_size": 16,
        "r": 4,
        "rank_pattern": {},
        "target_modules": ["q_proj"],
        "target_parameters": None,
        "task_type": "CAUSAL_LM",
        "trainable_token_indices": None,
        "use_dora": False,
        "use_rslora": False,
    } | fields


def lora_pair(
    module: str, shape: tuple[int, int], rank: int = 4, seed: int = 0, std: float = 0.3
) -> dict[str, Array]:
    """A and B of a module whose weight is (out, in), under the names of peft."""
    random = np.random.default_rng(seed)
    a, b = (rank, shape[1]), (shape[0], rank)
    return {
        f"{PREFIX}{module}.lora_{part}.weight": random.normal(0, std, size).astype(np.float32)
        for part, size in (("A", a), ("B", b))
    }


def write_adapter(
    folder: Path, tensors: Mapping[str, Array], dtype: str = "F32", **fields: Any
) -> Path:
    """Writes an adapter's two files and returns their folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(lora_config(**fields)))
    (folder / "adapter_model.safetensors").write_bytes(safetensors_bytes(tensors, dtype))
    return folder


def merged_slowly(
    base: Mapping[str, Array], tensors: Mapping[str, Array], config: Mapping[str, Any]
) -> dict[str, Array]:
    """base + scale · B · A in float64, module by module; GPT-2's weights are (in, out)."""
    result = {name: values.astype(np.float64) for name, values in base.items()}
    for name, a in tensors.items():
        if not name.endswith(".lora_A.weight"):
            continue
        b = tensors[name.replace("lora_A", "lora_B")]
        module = name.removeprefix(PREFIX).removesuffix(".lora_A.weight")
        rank, alpha = config["r"], config["lora_alpha"]
        for pattern, value in reversed(config["rank_pattern"].items()):
            rank = value if re.match(rf"(.*\.)?({pattern})$", module) else rank
        for pattern, value in reversed(config["alpha_pattern"].items()):
            alpha = value if re.match(rf"(.*\.)?({pattern})$", module) else alpha
        scale = alpha / math.sqrt(rank) if config["use_rslora"] else alpha / rank
        delta = scale * (b.astype(np.float64) @ a.astype(np.float64))
        is_conv1d = module.startswith("transformer.h.")
        result[f"{module}.weight"] += delta.T if is_conv1d else delta
    return result
