"""Each architecture of llama.cpp that is also one of ours: its config.json, and its tensors' names.

llama.cpp has names of its own ("blk.0.attn_q.weight") and stores some values in another way, which
is undone here:

    llama   a head's rows of queries and keys in pairs, as its kernel rotates them; Hugging Face
            rotates rows i and i + E/2 of a head
    gemma   a norm's weight with 1 added, which the graph does
    gpt2    a linear weight as (out, in), which the graph takes as (in, out)

Sources: llama.cpp ``convert_hf_to_gguf.py`` for what is stored, ``llama-arch.cpp`` and the files of
``src/models`` for what is computed, ``gguf-py/gguf/tensor_mapping.py`` for names.
Letters: H heads, E head size, D width.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..checkpoint import CheckpointTensor
from ..config_fields import LARGEST
from ..errors import CheckpointError
from .header import AGAIN
from .metadata import Metadata
from .rope import rope_scaling
from .tensors import StoredBlocks

Config = dict[str, Any]
Stored = dict[str, StoredBlocks]
Floats = NDArray[np.float32]
Change = Callable[[CheckpointTensor], CheckpointTensor]

LAYERS = LARGEST["num_hidden_layers"]
BLOCK = re.compile(r"blk\.(\d+)\.(.+)")
# What says nothing of the computation, or is told by the tensors as well.
NEUTRAL = {"vocab_size", "tensor_data_layout", "rope.scaling.finetuned"}
SIZES = {"context_length", "embedding_length", "feed_forward_length", "block_count"}
SIZES |= {"attention.head_count", "attention.head_count_kv"}
ROPE = {"rope.dimension_count", "rope.freq_base", "rope.scale_linear"}
ROPE |= {"rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length"}
ROPE |= {"rope.scaling.attn_factor", "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow"}
LLAMA_KEYS = SIZES | ROPE | {"attention.key_length", "attention.value_length"}
LLAMA_KEYS |= {"attention.layer_norm_rms_epsilon"}
# Of the whole model, no weight of its own: the rotation's.
ROTARY = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")

NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
NORMS_BEHIND = {
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
GPT2_NAMES = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
}
GPT2_LAYER_NAMES = {
    "attn_norm": "ln_1",
    "attn_qkv": "attn.c_attn",
    "attn_output": "attn.c_proj",
    "ffn_norm": "ln_2",
    "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}


@dataclass(frozen=True)
class Family:
    """An architecture: its ``config`` of metadata and tensors, and what its tensors become."""

    config: Callable[[Metadata, Stored], Config]
    keys: frozenset[str]  # of the metadata, that are read
    names: dict[str, str] = field(default_factory=lambda: NAMES)
    layers: str = "model.layers"
    layer_names: dict[str, str] = field(default_factory=lambda: LAYER_NAMES)
    change: Callable[[str, Config], Change | None] = lambda name, config: None


def read_family(about: Metadata, stored: Stored) -> tuple[Config, dict[str, CheckpointTensor]]:
    """The config.json of a file, and its tensors under Hugging Face's names.

    Raises CheckpointError for an architecture that is not known, which lists those that are, and
    for an entry of the metadata that asks for what is not built.
    """
    name = about.text("general.architecture")
    if name not in FAMILIES:
        raise CheckpointError(
            f"{about.file}: general.architecture is {name!r:.60}, expected one of "
            f"{', '.join(sorted(FAMILIES))}; no other can be exported"
        )
    if about.text("general.type", "model") != "model":
        raise about.wrong("general.type", "model", "name the model's own file")
    family = FAMILIES[name]
    of_network = about.under(f"{name}.")
    _refuse_unknown(of_network, family.keys)
    config = family.config(of_network, stored)
    tensors: dict[str, CheckpointTensor] = {}
    for tensor in stored.values():
        if tensor.name in ROTARY or (_is_head(tensor) and config["tie_word_embeddings"]):
            continue
        known = _known_name(family, tensor.name)
        change = family.change(tensor.name, config)
        found = tensor.tensor(known)
        tensors[known] = found if change is None else change(found)
    return config, tensors


def _refuse_unknown(about: Metadata, known: frozenset[str]) -> None:
    """What an entry does that is not read here, nobody knows: only what is off may be there."""
    for key in about.keys():
        value = about.raw(key)
        off = isinstance(value, int | float | str) and not value
        if key not in known and key not in NEUTRAL and not off:
            raise about.wrong(
                key,
                "none",
                "it may ask for what is not built, so this file cannot be exported: take the "
                "checkpoint in safetensors form",
            )


def _known_name(family: Family, name: str) -> str:
    """Hugging Face's name of a tensor; its own if there is none, for the architecture to refuse."""
    place, _, part = name.rpartition(".")
    if match := BLOCK.fullmatch(place):
        layer, kind = match.groups()
        known = family.layer_names.get(kind)
        return name if known is None else f"{family.layers}.{layer}.{known}.{part}"
    known = family.names.get(place)
    return name if known is None else f"{known}.{part}"


def _is_head(tensor: StoredBlocks) -> bool:
    return tensor.name == "output.weight"


# --- configurations -----------------------------------------------------------------------------


def _llama(about: Metadata, stored: Stored) -> Config:
    """What all share that are like Llama."""
    heads, width = about.count("attention.head_count"), about.count("embedding_length")
    head_size = about.count("attention.key_length", max(1, width // heads))
    if about.count("attention.value_length", head_size) != head_size:
        raise about.wrong("attention.value_length", f"{head_size}, the size of a key")
    return {
        "model_type": "llama",
        "vocab_size": _vocab_size(about, stored),
        "hidden_size": width,
        "intermediate_size": about.count("feed_forward_length"),
        "num_hidden_layers": about.count("block_count", most=LAYERS),
        "num_attention_heads": heads,
        "num_key_value_heads": about.count("attention.head_count_kv", heads),
        "head_dim": head_size,
        "max_position_embeddings": about.count("context_length"),
        "rms_norm_eps": about.number("attention.layer_norm_rms_epsilon"),
        "rope_theta": about.number("rope.freq_base", 10000.0),
        "rope_scaling": rope_scaling(about, stored),
        "tie_word_embeddings": _is_tied(stored),
        # Of the queries' alone Qwen2 says nothing.
        "attention_bias": "blk.0.attn_output.bias" in stored,
        "mlp_bias": "blk.0.ffn_down.bias" in stored,
    }


def _llama_or_mistral(about: Metadata, stored: Stored) -> Config:
    """Both have one name in llama.cpp."""
    config = _rotated_whole(about, stored)
    if about.raw("attention.sliding_window"):
        window = about.count("attention.sliding_window")
        return config | {"model_type": "mistral", "sliding_window": window}
    return config


def _rotated_whole(about: Metadata, stored: Stored) -> Config:
    """Those that rotate all of a head."""
    config = _llama(about, stored)
    if about.count("rope.dimension_count", config["head_dim"]) != config["head_dim"]:
        raise about.wrong("rope.dimension_count", f"{config['head_dim']}, the size of a head")
    return config


def _named(model_type: str) -> Callable[[Metadata, Stored], Config]:
    return lambda about, stored: _rotated_whole(about, stored) | {"model_type": model_type}


def _phi3(about: Metadata, stored: Stored) -> Config:
    config = _llama(about, stored)
    rotated = about.count("rope.dimension_count", config["head_dim"])
    window = about.raw("attention.sliding_window")
    return config | {
        "model_type": "phi3",
        "partial_rotary_factor": rotated / config["head_dim"],
        # 0 where there is none, as in Phi-4
        "sliding_window": about.count("attention.sliding_window") if window else None,
    }


def _gemma3(about: Metadata, stored: Stored) -> Config:
    config = _rotated_whole(about, stored)
    # What the scores are divided by is in no file: the size of a head, but for the largest model.
    largest = config["num_hidden_layers"] == 62
    scalar = config["hidden_size"] / config["num_attention_heads"]
    return config | {
        "model_type": "gemma3_text",
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": scalar if largest else float(config["head_dim"]),
        "sliding_window": about.count("attention.sliding_window"),
        "sliding_window_pattern": about.count("attention.sliding_window_pattern", 6),
        "rope_theta": about.number("rope.freq_base", 1e6),
        "rope_local_base_freq": about.number("rope.freq_base_swa", 10000.0),
    }


def _gpt2(about: Metadata, stored: Stored) -> Config:
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


# --- values -------------------------------------------------------------------------------------


def _in_halves(name: str, config: Config) -> Change | None:
    """Undoes the pairs of Llama's queries and keys."""
    match = re.fullmatch(r"blk\.\d+\.attn_([qk])\.(weight|bias)", name)
    if match is None:
        return None
    heads = config["num_attention_heads" if match[1] == "q" else "num_key_value_heads"]
    return lambda tensor: halves(tensor, heads)


def halves(tensor: CheckpointTensor, heads: int) -> CheckpointTensor:
    """(H·E, …) with a head's rows in pairs -> one half after the other."""
    size = tensor.shape[0] // heads
    if not size or tensor.shape[0] % heads or size % 2:
        return tensor  # of another shape than the config says, which is refused by name

    def rows(start: int, stop: int) -> Floats:
        first = start // size * size  # whole heads
        pairs = tensor.rows(first, -(-stop // size) * size)
        shape = (-1, size // 2, 2, *tensor.shape[1:])
        whole = pairs.reshape(shape).swapaxes(1, 2).reshape(pairs.shape)
        return np.ascontiguousarray(whole[start - first : stop - first])

    return replace(tensor, rows=rows)


def _less_one(name: str, config: Config) -> Change | None:
    """Takes from Gemma's norms what their graph adds."""
    if not name.endswith("norm.weight"):
        return None
    return lambda tensor: replace(
        tensor, rows=lambda start, stop: tensor.rows(start, stop) - np.float32(1)
    )


def _turned(name: str, config: Config) -> Change | None:
    """Turns GPT-2's linear weights to (in, out)."""
    linear = re.fullmatch(r"blk\.\d+\.(attn_qkv|attn_output|ffn_up|ffn_down)\.weight", name)
    return turned if linear else None


def turned(tensor: CheckpointTensor) -> CheckpointTensor:
    """(R, C) -> (C, R); some of its rows cost as much as all."""

    def rows(start: int, stop: int) -> Floats:
        return np.ascontiguousarray(tensor.read().T[start:stop])

    return replace(tensor, shape=tensor.shape[::-1], rows=rows, whole=True)


QWEN2 = Family(_named("qwen2"), frozenset(LLAMA_KEYS))
FAMILIES = {
    "llama": Family(
        _llama_or_mistral, frozenset(LLAMA_KEYS | {"attention.sliding_window"}), change=_in_halves
    ),
    "qwen2": QWEN2,
    "qwen3": replace(QWEN2, config=_named("qwen3")),
    "olmo2": replace(QWEN2, config=_named("olmo2"), layer_names=LAYER_NAMES | NORMS_BEHIND),
    "phi3": Family(
        _phi3,
        frozenset(LLAMA_KEYS | {"attention.sliding_window"}),
        layer_names=LAYER_NAMES | {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"},
    ),
    "gemma3": Family(
        _gemma3,
        frozenset(
            LLAMA_KEYS
            | {"attention.sliding_window", "attention.sliding_window_pattern"}
            | {"rope.freq_base_swa"}
        ),
        layer_names=LAYER_NAMES | NORMS_BEHIND | {"ffn_norm": "pre_feedforward_layernorm"},
        change=_less_one,
    ),
    "gpt2": Family(
        _gpt2,
        frozenset(SIZES | {"attention.layer_norm_epsilon"}),
        names=GPT2_NAMES,
        layers="transformer.h",
        layer_names=GPT2_LAYER_NAMES,
        change=_turned,
    ),
}
