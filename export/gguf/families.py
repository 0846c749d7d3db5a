"""Each architecture of llama.cpp that is also one of ours: its config.json, and its tensors' names.

llama.cpp has names of its own ("blk.0.attn_q.weight"); what it stores in another way ``changes``
undoes. Source of the names: llama.cpp ``gguf-py/gguf/tensor_mapping.py``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ..checkpoint import CheckpointTensor
from ..errors import CheckpointError
from . import changes, configs
from .changes import Change, Config
from .configs import Read, Stored
from .header import AGAIN
from .metadata import Metadata

BLOCK = re.compile(r"blk\.(\d+)\.(.+)")
# Entries that say nothing of the computation, or what the tensors tell as well.
NEUTRAL = {"vocab_size", "tensor_data_layout", "rope.scaling.finetuned"}
# Entries that are read, of those that are like Llama.
SIZES = {"context_length", "embedding_length", "feed_forward_length", "block_count"}
SIZES |= {"attention.head_count", "attention.head_count_kv"}
ROPE = {"rope.dimension_count", "rope.freq_base", "rope.scale_linear"}
ROPE |= {"rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length"}
ROPE |= {"rope.scaling.attn_factor", "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow"}
PLAIN = SIZES | ROPE | {"attention.key_length", "attention.value_length"}
RMS, LAYER_NORM = "attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"
WINDOW = "attention.sliding_window"
# Tensors of the rotation, which is in the config.json.
ROTARY = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")

NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
ATTENTION_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
}
LAYER_NAMES = ATTENTION_NAMES | {
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
HEAD_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
NORMS_BEHIND = {
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
BEHIND_NAMES = LAYER_NAMES | HEAD_NORMS | NORMS_BEHIND
GEMMA_NAMES = LAYER_NAMES | NORMS_BEHIND | {"ffn_norm": "pre_feedforward_layernorm"}
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
NEOX_NAMES = {
    "token_embd": "gpt_neox.embed_in",
    "output_norm": "gpt_neox.final_layer_norm",
    "output": "embed_out",
}
NEOX_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_qkv": "attention.query_key_value",
    "attn_output": "attention.dense",
    "ffn_norm": "post_attention_layernorm",
    "ffn_up": "mlp.dense_h_to_4h",
    "ffn_down": "mlp.dense_4h_to_h",
}


@dataclass(frozen=True)
class Family:
    """An architecture: its ``config`` of metadata and tensors, and what its tensors become."""

    architecture: str  # the file of ``architectures``
    config: Read
    keys: frozenset[str]  # of the metadata, that are read
    layer_names: dict[str, str]
    change: Callable[[str, Config], Change | None] = changes.nothing
    names: dict[str, str] | None = None  # those of Llama
    layers: str = "model.layers"


def _llama_like(
    architecture: str,
    config: Read | None = None,
    keys: tuple[str, ...] = (),
    names: Mapping[str, str] = LAYER_NAMES,
    change: Callable[[str, Config], Change | None] = changes.nothing,
) -> Family:
    """A family that reads Llama's entries and ``keys``, and has its names outside the layers."""
    read = config or configs.plain(architecture)
    return Family(architecture, read, frozenset((*PLAIN, RMS, *keys)), dict(names), change)


GRANITE_KEYS = ("attention.scale", "embedding_scale", "residual_scale", "logit_scale")
FAMILIES = {
    "llama": _llama_like("llama", configs.llama_or_mistral, (WINDOW,), change=changes.in_halves),
    "qwen2": _llama_like("qwen2"),
    "qwen3": _llama_like("qwen3", names=LAYER_NAMES | HEAD_NORMS),
    "olmo2": _llama_like(
        "olmo2", names={k: v for k, v in BEHIND_NAMES.items() if k not in ("attn_norm", "ffn_norm")}
    ),
    "phi3": _llama_like(
        "phi3",
        configs.phi3,
        (WINDOW,),
        LAYER_NAMES | {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"},
    ),
    "gemma2": _llama_like(
        "gemma2",
        configs.gemma2,
        (WINDOW, "attn_logit_softcapping", "final_logit_softcapping"),
        GEMMA_NAMES,
        changes.less_one,
    ),
    "gemma3": _llama_like(
        "gemma3_text",
        configs.gemma3,
        (WINDOW, "attention.sliding_window_pattern", "rope.freq_base_swa"),
        GEMMA_NAMES | HEAD_NORMS,
        changes.less_one,
    ),
    "smollm3": _llama_like("smollm3", change=changes.in_halves),
    "granite": _llama_like("granite", configs.granite, GRANITE_KEYS, change=changes.in_halves),
    "starcoder2": Family(
        "starcoder2",
        configs.starcoder2,
        frozenset((*PLAIN, LAYER_NORM)),
        LAYER_NAMES | {"ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"},
    ),
    "stablelm": Family(
        "stablelm",
        configs.stablelm,
        frozenset((*PLAIN, LAYER_NORM, "use_parallel_residual")),
        LAYER_NAMES,
    ),
    "phi2": Family(
        "phi",
        configs.phi2,
        frozenset((*PLAIN, LAYER_NORM)),
        ATTENTION_NAMES
        | {"attn_output": "self_attn.dense", "ffn_up": "mlp.fc1", "ffn_down": "mlp.fc2"},
        names=NAMES | {"output_norm": "model.final_layernorm"},
    ),
    "gptneox": Family(
        "gpt_neox",
        configs.gptneox,
        frozenset((*PLAIN, LAYER_NORM, "use_parallel_residual")),
        NEOX_LAYER_NAMES,
        changes.by_head,
        NEOX_NAMES,
        "gpt_neox.layers",
    ),
    "gpt2": Family(
        "gpt2",
        configs.gpt2,
        frozenset((*SIZES, LAYER_NORM)),
        GPT2_LAYER_NAMES,
        changes.turned,
        GPT2_NAMES,
        "transformer.h",
    ),
}


def read_family(about: Metadata, stored: Stored) -> tuple[Config, dict[str, CheckpointTensor]]:
    """The config.json of a file, and its tensors under Hugging Face's names.

    Raises CheckpointError for an architecture that is not known, which lists those that are, and
    for an entry of the metadata that asks for what is not built.
    """
    if about.text("general.type", "model") != "model":
        raise about.wrong("general.type", "model", "name the model's own file")
    name = about.text("general.architecture")
    if name not in FAMILIES:
        raise about.wrong(
            "general.architecture",
            f"one of {', '.join(sorted(FAMILIES))}",
            "no other can be exported from GGUF",
        )
    family, of_network = FAMILIES[name], about.under(f"{name}.")
    _refuse_unknown(of_network, family.keys)
    config = family.config(of_network, stored)
    tensors: dict[str, CheckpointTensor] = {}
    for tensor in stored.values():
        is_tied_head = tensor.name == "output.weight" and config["tie_word_embeddings"]
        if tensor.name in ROTARY or is_tied_head:
            continue
        known = _known_name(family, tensor.name)
        if known in tensors:
            raise CheckpointError(
                f"{about.file}: tensor {tensor.name!r} is {known!r} as another one is, expected "
                f"one; {AGAIN}"
            )
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
    known = (family.names or NAMES).get(place)
    return name if known is None else f"{known}.{part}"
