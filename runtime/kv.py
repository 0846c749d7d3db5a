"""Which KV cache a model runs with: float32 as it was computed, or 8 bits a number.

int8 reads a quarter of the bytes, and so generates faster after a long text; it takes a second
graph in the folder, which has the scales (``quantize.int8_cache``). Its kernel reads prompts
slower: with ONNX Runtime 1.32 on an AMD EPYC with AVX-512, int4, one thread, int8 over fp32:

                          after       prompt   generation
    GPT-2 124M            128 tokens   0.88     1.08
                          900          0.67     1.2
    SmolLM2 135M          900          0.62     1.16
                          4,000        0.42     1.43

What a prompt of 900 loses, 300 generated tokens win back: so ``AUTO`` is float32, and who writes
long answers, or has little memory, asks for int8. Beside a second set of weights for prompts its
graph reads them over int8 nearly as fast (``quantize.int8_rows``); but rows that are computed
together are then left to the first set.
"""

from __future__ import annotations

from ..export.errors import RequestError
from ..export.folder import GROWING, ModelFolder
from ..export.manifest import DECODER, INT8_KV_DECODER
from .providers import CPU, Obstacle, Place

AUTO, FP32, INT8 = "auto", "fp32", "int8"
KV_CACHES = (AUTO, FP32, INT8)
GRAPHS = {FP32: DECODER, INT8: INT8_KV_DECODER}  # what each of them runs


def check_kv(asked: str) -> None:
    """Raises RequestError for a cache that is none of ``KV_CACHES``."""
    if asked not in KV_CACHES:
        raise RequestError(f"kv is {asked!r:.40}, expected one of: {', '.join(KV_CACHES)}")


def choose_kv(folder: ModelFolder, asked: str, place: Place = CPU) -> str:
    """``FP32`` or ``INT8``: what ``folder`` runs with at ``place`` where ``asked`` is asked for.

    Raises RequestError for another name and for an int8 cache that the folder has no graph for,
    ProviderError for one at a place that has no kernel for it.
    """
    check_kv(asked)
    if asked != INT8:
        return FP32
    _check_has_int8(folder)
    if place is not CPU:
        raise NO_INT8_THERE.error()
    return INT8


NO_INT8_THERE = Obstacle(
    "kv 'int8'",
    "fp32 or auto, since attention runs in float16 there",
    "leave kv out, or use the provider cpu",
)


def _check_has_int8(folder: ModelFolder) -> None:
    if folder.graph().cache.layout == GROWING:
        raise RequestError(
            f"{folder.path}: kv is 'int8', found a traced graph that makes its cache anew with "
            "every token, expected one that keeps it in place; leave kv out"
        )
    if INT8_KV_DECODER not in folder.manifest.graphs:
        raise RequestError(
            f"{folder.path}: kv is 'int8', found no graph with an int8 KV cache (it has "
            f"{', '.join(folder.manifest.graphs)}), expected {INT8_KV_DECODER}; leave kv out, or "
            "make a folder that has one: pocketlm export CHECKPOINT OUT --precision int4 "
            "--calibrate dream"
        )
