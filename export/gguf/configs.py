"""A config.json from the metadata of a GGUF file, one function for each architecture.

What llama.cpp computes without being told is written here as it does it. Sources: llama.cpp
``llama-model.cpp`` and the files of ``src/models`` for what is computed, ``convert_hf_to_gguf.py``
for which field of config.json an entry comes from.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..config_fields import LARGEST
from ..errors import CheckpointError
from .header import AGAIN
from .metadata import Metadata
from .rope import rope_scaling
from .tensors import StoredBlocks

Config = dict[str, Any]
Stored = dict[str, StoredBlocks]
Read = Callable[[Metadata, Stored], Config]

LAYERS = LARGEST["num_hidden_layers"]


def plain(model_type: str) -> Read:
    """Those that are like Llama and rotate all of a head."""
    return lambda about, stored: _rotated_whole(about, stored) | {"model_type": model_type}


def llama_or_mistral(about: Metadata, stored: Stored) -> Config:
    """Both have one name in llama.cpp."""
    config = _rotated_whole(about, stored)
    if about.says("attention.sliding_window"):
        window = about.count("attention.sliding_window")
        return config | {"model_type": "mistral", "sliding_window": window}
    return config | {"model_type": "llama"}


def phi3(about: Metadata, stored: Stored) -> Config:
    """Phi-3 and Phi-4-mini."""
    config = _like_llama(about, stored)
    window = about.says("attention.sliding_window")  # 0 where there is none, as in Phi-4
    return config | {
        "model_type": "phi3",
        "partial_rotary_factor": _rotated(about, config),
        "sliding_window": about.count("attention.sliding_window") if window else None,
    }


def gemma2(about: Metadata, stored: Stored) -> Config:
    """Gemma 2; its largest model has 46 layers."""
    return _gemma(about, stored, largest=46) | {
        "model_type": "gemma2",
        "attn_logit_softcapping": about.number("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": about.number("final_logit_softcapping", 30.0),
        "rope_theta": about.number("rope.freq_base", 10000.0),
    }


def gemma3(about: Metadata, stored: Stored) -> Config:
    """The text model of Gemma 3; the largest has 62 layers."""
    return _gemma(about, stored, largest=62) | {
        "model_type": "gemma3_text",
        "sliding_window_pattern": about.count("attention.sliding_window_pattern", 6),
        "rope_theta": about.number("rope.freq_base", 1e6),
        "rope_local_base_freq": about.number("rope.freq_base_swa", 10000.0),
    }


def _gemma(about: Metadata, stored: Stored, largest: int) -> Config:
    config = _rotated_whole(about, stored)
    # What the scores are divided by is in no file: the size of a head, but for the largest model.
    scalar = float(config["head_dim"])
    if config["num_hidden_layers"] == largest:
        scalar = config["hidden_size"] / config["num_attention_heads"]
    return config | {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": scalar,
        "sliding_window": about.count("attention.sliding_window"),
    }


def granite(about: Metadata, stored: Stored) -> Config:
    """Granite 3."""
    config = _rotated_whole(about, stored)
    return config | {
        "model_type": "granite",
        "attention_multiplier": about.number("attention.scale", config["head_dim"] ** -0.5),
        "embedding_multiplier": about.number("embedding_scale", 1.0),
        "residual_multiplier": about.number("residual_scale", 1.0),
        "logits_scaling": about.number("logit_scale", 1.0),
    }


def starcoder2(about: Metadata, stored: Stored) -> Config:
    """StarCoder2, which sees everything in llama.cpp."""
    return _rotated_whole(about, stored, "attention.layer_norm_epsilon", "norm_epsilon") | {
        "model_type": "starcoder2",
        "hidden_act": "gelu_pytorch_tanh",
        "use_bias": "blk.0.attn_q.bias" in stored,
        "sliding_window": None,
    }


def stablelm(about: Metadata, stored: Stored) -> Config:
    """StableLM; without a norm of its own the feed-forward part is beside attention."""
    config = _like_llama(about, stored, "attention.layer_norm_epsilon", "layer_norm_eps")
    return config | {
        "model_type": "stablelm",
        "partial_rotary_factor": _rotated(about, config),
        "use_qkv_bias": "blk.0.attn_q.bias" in stored,
        "use_parallel_residual": "blk.0.ffn_norm.weight" not in stored,
    }


def phi2(about: Metadata, stored: Stored) -> Config:
    """Phi 1, 1.5 and 2."""
    config = _like_llama(about, stored, "attention.layer_norm_epsilon", "layer_norm_eps")
    return config | {
        "model_type": "phi",
        "hidden_act": "gelu_new",
        "partial_rotary_factor": _rotated(about, config),
    }


def gptneox(about: Metadata, stored: Stored) -> Config:
    """GPT-NeoX and Pythia."""
    config = _like_llama(about, stored, "attention.layer_norm_epsilon", "layer_norm_eps")
    return config | {
        "model_type": "gpt_neox",
        "hidden_act": "gelu",
        "rotary_pct": _rotated(about, config),
        "attention_bias": "blk.0.attn_qkv.bias" in stored,
        "use_parallel_residual": about.flag("use_parallel_residual", True),
    }


def gpt2(about: Metadata, stored: Stored) -> Config:
    """GPT-2."""
    return {
        "model_type": "gpt2",
        "vocab_size": _vocab_size(about, stored),
        "n_positions": about.count("context_length"),
        "n_embd": about.count("embedding_length"),
        "n_layer": about.count("block_count", most=LAYERS),
        "n_head": about.count("attention.head_count"),
        "n_inner": about.count("feed_forward_length"),
        "activation_function": "gelu_new",
        "layer_norm_epsilon": about.number("attention.layer_norm_epsilon"),
        "tie_word_embeddings": _is_tied(stored),
    }


# --- what they share ----------------------------------------------------------------------------


def _like_llama(
    about: Metadata,
    stored: Stored,
    epsilon: str = "attention.layer_norm_rms_epsilon",
    epsilon_name: str = "rms_norm_eps",
) -> Config:
    """The fields that all but GPT-2 have; ``epsilon`` is the entry of the norms'."""
    heads, width = about.count("attention.head_count"), about.count("embedding_length")
    head_size = about.count("attention.key_length", max(1, width // heads))
    if about.count("attention.value_length", head_size) != head_size:
        raise about.wrong("attention.value_length", f"{head_size}, the size of a key")
    return {
        "vocab_size": _vocab_size(about, stored),
        "hidden_size": width,
        "intermediate_size": about.count("feed_forward_length"),
        "num_hidden_layers": about.count("block_count", most=LAYERS),
        "num_attention_heads": heads,
        "num_key_value_heads": about.count("attention.head_count_kv", heads),
        "head_dim": head_size,
        "max_position_embeddings": about.count("context_length"),
        epsilon_name: about.number(epsilon),
        "rope_theta": about.number("rope.freq_base", 10000.0),
        "rope_scaling": rope_scaling(about, stored),
        "tie_word_embeddings": _is_tied(stored),
        # Of those of queries alone, Qwen2 and StableLM have fields of their own, or none.
        "attention_bias": "blk.0.attn_output.bias" in stored,
        "mlp_bias": "blk.0.ffn_down.bias" in stored,
    }


def _rotated_whole(about: Metadata, stored: Stored, *epsilon: str) -> Config:
    config = _like_llama(about, stored, *epsilon)
    if about.count("rope.dimension_count", config["head_dim"]) != config["head_dim"]:
        raise about.wrong("rope.dimension_count", f"{config['head_dim']}, the size of a head")
    return config


def _rotated(about: Metadata, config: Config) -> float:
    """The share of a head that is rotated."""
    size: int = config["head_dim"]
    count = about.count("rope.dimension_count", size)
    if count > size:
        raise about.wrong("rope.dimension_count", f"at most {size}, the size of a head")
    return count / size


def _vocab_size(about: Metadata, stored: Stored) -> int:
    """Rows of the embedding."""
    table = stored.get("token_embd.weight")
    if table is None or len(table.shape) != 2:
        found = "no tensor" if table is None else f"one of shape {table.shape}"
        raise CheckpointError(
            f"{about.file}: found {found} 'token_embd.weight', expected one of two dimensions; "
            f"{AGAIN}"
        )
    return table.shape[0]


def _is_tied(stored: Stored) -> bool:
    """Whether the head is the embedding: none is stored, or the same once more."""
    head, table = stored.get("output.weight"), stored.get("token_embd.weight")
    return head is None or (table is not None and head.equals(table))
