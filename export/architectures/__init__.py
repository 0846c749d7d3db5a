"""One file per family, named as ``model_type``; the house finds it by that name.

Each offers its ``ARCHITECTURE``: a ``Config``, a block, and what else the family does in its own
way. The loop that makes a graph of them is in ``decoder``; the shortest file is ``mistral``.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

from ..decoder import Architecture
from ..errors import CheckpointError
from ..strict_json import shown
from ..wrapped import Wrapped

EXPERTS = "a mixture of experts"
# What a config.json has beside a ``model_type`` when it is of a kind that no file here builds.
KINDS = {
    EXPERTS: ("num_local_experts", "num_experts", "n_routed_experts"),
    "a text model inside one for images or sound": ("text_config", "vision_config", "audio_config"),
    "a checkpoint that is already quantized": ("quantization_config", "compression_config"),
}
# Measured with 32 experts of 2048 × 768, 8 of them for a token, int4 in blocks of 128, one thread
# of a CPU with AVX-512: 1.4 ms for a token, where MatMulNBits takes 0.6 for the same bytes, and 0.7
# for each of 64. All experts for every token, without that kernel, are 4 to 16 times the bytes.
WHY_NOT = {
    EXPERTS: "ONNX Runtime's kernel for experts takes more than twice the time of plain products "
    "of the same weights, and has none of the formats that a model is quantized to here; "
}


def known_architectures() -> list[str]:
    """Names of the files in this folder: every ``model_type`` that can be exported."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def find_architecture(config: dict[str, Any]) -> Architecture[Any]:
    """The family that ``config["model_type"]`` names.

    CheckpointError lists the known ones otherwise, and names the kind of model that none builds.
    """
    model_type = config.get("model_type")
    known = known_architectures()
    fields = [(kind, name) for kind, names in KINDS.items() for name in names if config.get(name)]
    kind = fields[0][0] if fields else ""
    of_kind = f", {kind} ({fields[0][1]})" if fields else ""
    if model_type not in known:
        raise CheckpointError(
            f"config.json: model_type is {shown(model_type)}{of_kind}, expected one of "
            f"{', '.join(known)}; {WHY_NOT.get(kind, '')}another architecture may go "
            "through Optimum: pocketlm export FOLDER OUT --via optimum"
        )
    module = importlib.import_module(f"{__name__}.{model_type}")
    if isinstance(module.ARCHITECTURE, Wrapped):
        return module.ARCHITECTURE.architecture(config, find_architecture)
    if fields:
        name = fields[0][1]
        raise CheckpointError(
            f"config.json: {name} is {shown(config[name], 80)}{of_kind}, expected none: "
            f"a {model_type} with plain float weights; take the checkpoint this was made from"
        )
    architecture: Architecture[Any] = module.ARCHITECTURE
    return architecture
