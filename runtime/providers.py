"""Where a graph runs: the places there are, and what keeps this machine from CUDA.

ONNX Runtime takes a list of providers and silently leaves out those it cannot start, so what can be
asked beforehand is asked here, and a session compares what it got. Nothing is loaded or asked where
ONNX Runtime is built for the CPU alone. Sources: onnxruntime's CUDA execution provider and
``preload_dlls``; the CUDA driver API, ``cuInit`` and ``cuDeviceGetCount``.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import sys
from collections.abc import Collection
from dataclasses import dataclass

from ..export.errors import ProviderError, RequestError
from ..export.frozen import to_install
from .engine import INSTALL_CUDA, onnxruntime

AUTO, ON_CPU, ON_CUDA = "auto", "cpu", "cuda"
PROVIDERS = (AUTO, ON_CPU, ON_CUDA)
# Formats of pocketlm.quantize that multiply by MatMulIntegerToFloat: no CUDA kernel has it.
CPU_ONLY_FORMATS = frozenset({"int8-channel"})
FAILURE = "Failed to load "  # how preload_dlls begins to tell of a library it needs
ASKED_FOR_CUDA = "provider is 'cuda': "


@dataclass(frozen=True)
class Place:
    """A processor, as ONNX Runtime names it in three ways."""

    name: str  # ours: cpu or cuda
    memory: str  # of IOBinding and OrtValue: where the KV cache lies
    providers: tuple[tuple[str, dict[str, str]], ...]  # of InferenceSession, the preferred first


CPU = Place(ON_CPU, "cpu", (("CPUExecutionProvider", {}),))
CUDA = Place(
    ON_CUDA,
    "cuda",
    # TF32 would round every product to 10 bits: float32 on one processor is float32 on the other.
    (("CUDAExecutionProvider", {"use_tf32": "0"}), *CPU.providers),
)


@dataclass(frozen=True)
class Obstacle:
    """Why CUDA cannot be used: the three parts of an error message."""

    found: str
    expected: str
    advice: str

    def error(self) -> ProviderError:
        """For a caller who asked for ``cuda``."""
        return ProviderError(
            f"{ASKED_FOR_CUDA}found {self.found}, expected {self.expected}; {self.advice}"
        )


class FallbackWarning(UserWarning):
    """``auto`` took the CPU although this ONNX Runtime is built for CUDA."""


def check_provider(asked: str) -> None:
    """Raises RequestError for a provider that is none of ``PROVIDERS``."""
    if asked not in PROVIDERS:
        raise RequestError(f"provider is {asked!r}, expected one of: {', '.join(PROVIDERS)}")


def has_cuda_build() -> bool:
    """Whether the ONNX Runtime installed is one with CUDA in it."""
    return CUDA.providers[0][0] in onnxruntime.get_available_providers()


def cuda_obstacle(formats: Collection[str]) -> Obstacle | None:
    """What keeps a model with weights in those formats from CUDA; None if nothing is known yet.

    Loads the CUDA libraries that pip installed, so that a session finds them. What is wrong beyond
    that shows when a session is opened: see ``refused``.
    """
    if not has_cuda_build():
        return _no_build()
    return _driver_obstacle() or _format_obstacle(formats) or _library_obstacle()


def refused(session: onnxruntime.InferenceSession, place: Place) -> bool:
    """Whether ONNX Runtime left out the provider of ``place`` when it opened ``session``."""
    return place.providers[0][0] not in session.get_providers()


def start_obstacle() -> Obstacle:
    """Why a session did not get CUDA although nothing was missing: ONNX Runtime logs it only."""
    return Obstacle(
        "that ONNX Runtime could not start CUDA (its log above says why)",
        "a session there",
        "free the device or update its driver, or use the provider cpu",
    )


def _no_build() -> Obstacle:
    found = f"ONNX Runtime {onnxruntime.__version__} built without CUDA"
    if _installed("onnxruntime") and _installed("onnxruntime-gpu"):
        found = "the packages onnxruntime and onnxruntime-gpu in one place, the first on top"
    return Obstacle(found, "onnxruntime-gpu alone", to_install(INSTALL_CUDA))


def _installed(package: str) -> bool:
    import importlib.metadata  # not above: with what it imports it is as long as a session

    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _driver_obstacle() -> Obstacle | None:
    """Asks the driver for devices; loads nothing else."""
    expected = "an NVIDIA GPU and its driver"
    advice = "install the driver, let this process see the device, or use the provider cpu"
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError as error:
        return Obstacle(f"no NVIDIA driver ({error})", expected, advice)
    count = ctypes.c_int(0)
    code = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    if code or count.value < 1:
        return Obstacle(f"no CUDA device (the driver says error {code})", expected, advice)
    return None


def _format_obstacle(formats: Collection[str]) -> Obstacle | None:
    found = sorted(CPU_ONLY_FORMATS.intersection(formats))
    if not found:
        return None
    return Obstacle(
        f"weights in {found[0]}, whose products of integers have no CUDA kernel",
        "int4, int8-weight or fp32",
        "export it again with --precision int4, or use the provider cpu",
    )


def _library_obstacle() -> Obstacle | None:
    """Loads CUDA and cuDNN from the packages of pip, else from where the system has them."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        onnxruntime.preload_dlls()
    failures = [line for line in printed.getvalue().splitlines() if line.startswith(FAILURE)]
    if not failures:
        return None
    library, _, reason = failures[0].removeprefix(FAILURE).partition(": ")
    return Obstacle(
        f"no {library} ({reason})",
        f"the libraries of CUDA {onnxruntime.cuda_version}",
        to_install('pip install "onnxruntime-gpu[cuda,cudnn]"', "install them"),
    )
