"""Whether ONNX Runtime may report usage: its wheels do unless they were told before they began."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping

from pocketlm.doctor.finding import OK, WARNING, Finding

VARIABLE = "ORT_DISABLE_TELEMETRY"


def check_telemetry(
    environment: Mapping[str, str] = os.environ, modules: Iterable[str] | None = None
) -> Iterator[Finding]:
    """``modules`` are those imported, in their order."""
    value = environment.get(VARIABLE)
    order = list(sys.modules if modules is None else modules)
    first = next((name for name in order if name in ("pocketlm", "onnxruntime")), "pocketlm")
    figures = {"variable": value, "onnxruntime_first": first == "onnxruntime"}
    if value != "1":
        found = f"may be on: {VARIABLE} is {value or 'not set'}"
        yield Finding("telemetry", WARNING, found, f"set {VARIABLE}=1", figures)
    elif first == "onnxruntime":
        yield Finding(
            "telemetry",
            WARNING,
            "may be on: onnxruntime was imported before pocketlm, which switches it off",
            f"import pocketlm first, or set {VARIABLE}=1 before the program starts",
            figures,
        )
    else:
        found = f"off: {VARIABLE} was 1 before onnxruntime was imported"
        yield Finding("telemetry", OK, found, None, figures)
