"""All that is known of how results came about, in words: machine, versions, texts, folders."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .quantities import UNKNOWN, count, counted, size
from .visible_text import printable

LABELS = {
    "cpu": "processor",
    "features": "instruction sets used",
    "memory_bytes": "memory",
    "onnxruntime": "ONNX Runtime",
    "numpy": "NumPy",
    "python": "Python",
    "load_average": "load average",
    "read_bandwidth": "memory read bandwidth",
    "other_cores_busy": "cores busy with other work",
    "warmup": "warm-up runs",
}
TEXT_LABELS = {
    "tokens": "tokens scored",
    "bytes": "bytes scored",
    "words": "words scored",
    "start_token": "first token of a text",
    "limit": "limit of tokens per text",
    "split": "between documents",
    "skipped_documents": "documents with no token to score",
    "clusters": "standard errors are between",
    "without_token": "text without a token",
}
SHOWN_ELSEWHERE = {"command", "busy"}


def circumstances(results: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Everything, known or not: (what it is, its value)."""
    for key, value in results["circumstances"].items():
        if key not in SHOWN_ELSEWHERE:
            label = LABELS.get(key, printable(key).replace("_", " "))
            yield label, _circumstance(key, value)
    for key, value in (results.get("quality") or {}).items():
        if key not in ("models", "self_check"):
            yield TEXT_LABELS.get(key, printable(key).replace("_", " ")), _circumstance("", value)
    for model in results["models"]:
        if model.get("path"):
            yield f"folder of {printable(model['name'])}", printable(str(model["path"]))


def _circumstance(key: str, value: Any) -> str:
    if key == "read_bandwidth" and isinstance(value, dict):
        return ", ".join(
            f"{size(rate)}/s with {counted(int(threads), 'thread')}"
            for threads, rate in value.items()
            if rate
        )
    if key.endswith("_bytes") and isinstance(value, int):
        return size(value)
    if isinstance(value, dict):
        return ", ".join(f"{printable(name)} {_circumstance('', v)}" for name, v in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_circumstance("", item) for item in value) or UNKNOWN
    if isinstance(value, float):
        return f"{value:,.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return count(value)
    return UNKNOWN if value is None else printable(str(value))
