"""genai_config.json: lets onnxruntime-genai open a model folder of ours."""

from __future__ import annotations

from typing import Any

from .manifest import IN_PLACE, DecoderShape, GraphEntry

# What ONNX Runtime must be told on x86-64 processors with AVX2 but no VNNI: without it products of
# int8 saturate (quantize/formats/int8_channel.py). Elsewhere they only get slower by it, to about
# half: but a configuration cannot ask where it is read, and wrong is worse than slow.
SESSION_OPTIONS = {"session.x64quantprecision": "1"}
# With a shared past/present buffer onnxruntime-genai allocates max_length rows at once.
MODEST_LENGTH = 2048


def genai_config(
    shape: DecoderShape, generation_config: dict[str, Any], graph: GraphEntry
) -> dict[str, Any]:
    """The configuration of ``graph``: its file, its kind of cache, and whether it takes positions.

    Type "decoder" is the one that takes split key and value caches.
    Source: onnxruntime-genai 0.18, ``src/config.cpp``; the fields were tried with that version.
    """
    eos = generation_config.get("eos_token_id")
    eos_ids = (eos if isinstance(eos, list) else [] if eos is None else [eos]) or [0]
    bos = generation_config.get("bos_token_id")
    return {
        "model": {
            "type": "decoder",
            "bos_token_id": bos if bos is not None else eos_ids[0],
            "eos_token_id": eos_ids,
            "pad_token_id": eos_ids[0],
            "context_length": shape.context_length,
            "vocab_size": shape.vocab_size,
            "decoder": {
                "filename": graph.file,
                "head_size": shape.head_size,
                "hidden_size": shape.hidden_size,
                "num_attention_heads": shape.num_heads,
                "num_hidden_layers": shape.num_layers,
                "num_key_value_heads": shape.kv_heads,
                "session_options": {
                    "log_id": "genai",
                    "provider_options": [],
                    **SESSION_OPTIONS,
                },
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    **{name: name for name in ("position_ids",) if name in graph.inputs},
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
            },
        },
        "search": {
            "do_sample": False,
            "max_length": min(shape.context_length, MODEST_LENGTH),
            "past_present_share_buffer": graph.cache.layout == IN_PLACE,
            "num_beams": 1,
        },
    }
