"""Which weights compute prompts: those that decode, or a second set in W8A8 beside them.

A weight of 4 bits is the least to read, which is what one token a step takes; many tokens share
what is read, and integer products are faster then. ONNX Runtime 1.32 on 2 cores of an AMD EPYC with
AVX-512, prompts of 512 tokens: GPT-2 124M 201 ms with int4 and 130 with the second set, Llama 1B
1,544 and 874. So a folder may carry both, over one KV cache (``quantize.prefill_graph``).

Which set computes a step depends on its number of tokens, and on nothing that came before: tokens
do not depend on how often a model was asked, or on what is in memory.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..export.errors import RequestError
from ..export.folder import ModelFolder
from ..export.manifest import INT8_DYNAMIC, INT8_KV_PREFILL, PREFILL_DECODER
from ..export.memory import free_bytes
from ..export.quantities import size_text
from .kv import FP32
from .kv import INT8 as INT8_KV
from .providers import CPU, Obstacle, Place

AUTO, INT8, NONE = "auto", "int8", "none"
PREFILLS = (AUTO, INT8, NONE)
GRAPHS = {FP32: PREFILL_DECODER, INT8_KV: INT8_KV_PREFILL}  # KV cache -> what computes prompts
# Tokens of a step from which on the second set computes it: with fewer it gains little, and a
# chat's short turns would wait for it to be opened.
PROMPT_TOKENS = 64
# Its file is mapped while it is opened, and packed anew for the processor; and there is to be as
# much again for texts, and for others.
ROOM = 2

LEFT_OUT = 'or leave the second set of weights out: --prefill none (in Python: prefill="none")'


@dataclass(frozen=True)
class PrefillChoice:
    """What computes prompts: ``name`` is ``INT8`` or ``NONE``.

    ``note`` is why ``AUTO`` left out what the folder has, else None.
    """

    name: str
    note: str | None = None


def check_prefill(asked: str) -> None:
    """Raises RequestError for what is none of ``PREFILLS``."""
    if asked not in PREFILLS:
        raise RequestError(f"prefill is {asked!r:.40}, expected one of: {', '.join(PREFILLS)}")


def choose_prefill(
    folder: ModelFolder, asked: str, place: Place = CPU, kv: str = FP32
) -> PrefillChoice:
    """What ``folder`` computes prompts with, over the cache ``kv``, where ``asked`` is asked for.

    ``AUTO`` is ``INT8`` where the folder has the weights, and memory is free for them now.

    Raises RequestError for another name, and for weights that the folder does not have;
    ProviderError for them at a place that has no kernel for them.
    """
    check_prefill(asked)
    has_it = GRAPHS[kv] in folder.manifest.graphs
    if asked == INT8:
        if not has_it:
            raise _without_it(folder, kv)
        if place is not CPU:
            raise NO_INT8_THERE.error()
        return PrefillChoice(INT8)
    if asked == NONE or not has_it or place is not CPU:
        return PrefillChoice(NONE)
    needed, free = ROOM * folder.prefill_memory_bytes, free_bytes()
    if free is not None and free < needed:
        return PrefillChoice(
            NONE,
            f"prompts are computed with the weights that decode: {size_text(free)} of memory free, "
            f"{size_text(needed)} wanted for the second set; --prefill int8 insists",
        )
    return PrefillChoice(INT8)


NO_INT8_THERE = Obstacle(
    "prefill 'int8'",
    "none or auto, since products of integers have no kernel there",
    "leave prefill out, or use the provider cpu",
)


def _without_it(folder: ModelFolder, kv: str) -> RequestError:
    precision = folder.manifest.precision.name
    advice = "make a folder that has them: pocketlm export CHECKPOINT OUT --precision "
    if precision in (INT8, INT8_DYNAMIC):
        advice = "prompts of int8 are computed with W8A8 already"
    elif kv == INT8_KV and PREFILL_DECODER in folder.manifest.graphs:
        advice = "or leave out --kv int8"
    else:
        advice += f"{precision} --prefill int8"
    return RequestError(
        f"{folder.path}: prefill is 'int8', found no second set of weights for prompts (it has the "
        f"graphs {', '.join(folder.manifest.graphs)}), expected {GRAPHS[kv]}; leave prefill out - "
        f"{advice}"
    )
