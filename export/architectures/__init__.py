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

# What a config.json has beside a ``model_type`` when it is of a kind that no file here builds.
KINDS = {
    "a mixture of experts": ("num_local_experts", "num_experts", "n_routed_experts"),
    "a text model inside one for images or sound": ("text_config", "vision_config", "audio_config"),
    "a checkpoint that is already quantized": ("quantization_config", "compression_config"),
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
    of_kind = f", {fields[0][0]} ({fields[0][1]})" if fields else ""
    if model_type not in known:
        raise CheckpointError(
            f"config.json: model_type is {shown(model_type)}{of_kind}, expected one of "
            f"{', '.join(known)}; another architecture may go through Optimum: "
            "pocketlm export FOLDER OUT --via optimum"
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
