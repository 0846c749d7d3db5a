"""ONNX Runtime, whole, or an error that says what to install.

Its builds for CPU and CUDA are packages of different names that lie in one folder: removing one
takes files from the other, and what is left may even be imported, as an empty package.
"""

from __future__ import annotations

from ..export.errors import MissingExtraError
from ..export.frozen import to_install
from ..export.importing import first_line, importing
from ..export.interrupts import interrupts_held
from ..export.memory import exhausted, is_exhaustion

INSTALL = "pip uninstall -y onnxruntime onnxruntime-gpu && pip install {}"
INSTALL_CPU = INSTALL.format("onnxruntime")
INSTALL_CUDA = INSTALL.format('"onnxruntime-gpu[cuda,cudnn]"')
# One of each kind that is used: the extension, what is written in Python, and the version.
PARTS = ("InferenceSession", "RunOptions", "OrtValue", "get_available_providers", "__version__")

PURPOSE = "running a model"

with importing(PURPOSE, "cli"):
    import numpy  # noqa: F401  what ONNX Runtime says of one that is missing names no package
    import tokenizers  # noqa: F401
try:
    with interrupts_held():
        import onnxruntime

        for name in PARTS:
            getattr(onnxruntime, name)
except Exception as error:  # of a file that was cut off, also a SyntaxError
    if is_exhaustion(error):
        raise exhausted("importing onnxruntime") from error
    missing = isinstance(error, ModuleNotFoundError) and error.name == "onnxruntime"
    found = (
        "no package onnxruntime" if missing else f"only a part of onnxruntime ({first_line(error)})"
    )
    raise MissingExtraError(
        f"{PURPOSE}: found {found}, expected the whole of it; "
        + to_install(f"{INSTALL_CPU} (with CUDA: {INSTALL_CUDA})")
    ) from error

__all__ = ["INSTALL_CUDA", "onnxruntime"]
