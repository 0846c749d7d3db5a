"""One file per family, named as ``model_type``; the house finds it by that name.

Each offers ``build(checkpoint) -> (ir.Model, DecoderShape)`` and ``tensor_shapes(config)``, which
names every tensor of a checkpoint without one.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType
from typing import Any

from ..errors import CheckpointError


def known_architectures() -> list[str]:
    """Names of the files in this folder: every ``model_type`` that can be exported."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def find_architecture(config: dict[str, Any]) -> ModuleType:
    """The module for ``config["model_type"]``; CheckpointError lists the known ones otherwise."""
    model_type = config.get("model_type")
    known = known_architectures()
    if model_type not in known:
        raise CheckpointError(
            f"config.json: model_type is {model_type!r}, expected one of {', '.join(known)}; "
            "another architecture may go through Optimum: pocketlm export FOLDER OUT --via optimum"
        )
    return importlib.import_module(f"{__name__}.{model_type}")
