"""pocketlm: GPT-2, Llama and their kin on an ordinary CPU.

    import pocketlm
    model = pocketlm.load()                        # the demo model; or a model folder, a checkpoint
    for piece in model.stream("Once upon a time"):
        print(piece.text, end="", flush=True)

Importing this module loads neither NumPy nor ONNX Runtime; the first use of a name does.
"""

from __future__ import annotations

import os
import sys
import warnings
from typing import TYPE_CHECKING, Any

# ONNX Runtime's wheels report usage unless told otherwise before they are first initialised.
if "ORT_DISABLE_TELEMETRY" not in os.environ:
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    if "onnxruntime" in sys.modules:
        warnings.warn(
            "onnxruntime was imported before pocketlm, so its telemetry may be on; import "
            "pocketlm first, or set ORT_DISABLE_TELEMETRY=1",
            stacklevel=2,
        )

if TYPE_CHECKING:
    from pocketlm.export.errors import (
        CheckpointError,
        ClosedError,
        ContextLengthError,
        HubError,
        MissingExtraError,
        ModelFolderError,
        NumericsError,
        PocketLMError,
        ProviderError,
        RequestError,
        ResourceError,
        StorageError,
    )
    from pocketlm.export.observer import Observer
    from pocketlm.models.loading import load, load_async
    from pocketlm.runtime.beams import Beam
    from pocketlm.runtime.cancellation import Cancellation
    from pocketlm.runtime.labels import Classifier, LabelDistribution
    from pocketlm.runtime.model import Model
    from pocketlm.runtime.providers import FallbackWarning
    from pocketlm.runtime.scheduler import Job
    from pocketlm.runtime.scoring import Score, TextLogprobs
    from pocketlm.runtime.text import Piece, Result, TextStream, Timings
    from pocketlm.runtime.text_session import TextSession

__version__ = "0.1.0"

_HOMES = {
    "pocketlm.models.loading": ["load", "load_async"],
    "pocketlm.runtime.model": ["Model"],
    "pocketlm.runtime.scheduler": ["Job"],
    "pocketlm.export.observer": ["Observer"],
    "pocketlm.runtime.beams": ["Beam"],
    "pocketlm.runtime.cancellation": ["Cancellation"],
    "pocketlm.runtime.labels": ["Classifier", "LabelDistribution"],
    "pocketlm.runtime.providers": ["FallbackWarning"],
    "pocketlm.runtime.scoring": ["Score", "TextLogprobs"],
    "pocketlm.runtime.text": ["Piece", "Result", "TextStream", "Timings"],
    "pocketlm.runtime.text_session": ["TextSession"],
    "pocketlm.export.errors": [
        "CheckpointError",
        "ClosedError",
        "ContextLengthError",
        "HubError",
        "MissingExtraError",
        "ModelFolderError",
        "NumericsError",
        "PocketLMError",
        "ProviderError",
        "RequestError",
        "ResourceError",
        "StorageError",
    ],
}

__all__ = [
    "Beam",
    "Cancellation",
    "CheckpointError",
    "Classifier",
    "ClosedError",
    "ContextLengthError",
    "FallbackWarning",
    "HubError",
    "Job",
    "LabelDistribution",
    "MissingExtraError",
    "Model",
    "ModelFolderError",
    "NumericsError",
    "Observer",
    "Piece",
    "PocketLMError",
    "ProviderError",
    "RequestError",
    "ResourceError",
    "Result",
    "Score",
    "StorageError",
    "TextLogprobs",
    "TextSession",
    "TextStream",
    "Timings",
    "__version__",
    "load",
    "load_async",
]


def __getattr__(name: str) -> Any:
    import importlib

    from pocketlm.export import errors
    from pocketlm.export.importing import importing

    if name in _HOMES[errors.__name__]:  # to be had whatever else is not
        return getattr(errors, name)
    for module, names in _HOMES.items():
        if name in names:
            with importing("running a model", "cli"):
                return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
