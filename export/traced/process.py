"""Runs the tracing child: starts it, watches it, and turns every way it can end into one error.

torch, its memory and its crashes stay in the child; this process never imports it. There is no time
limit, since a large model takes as long as it takes: Ctrl-C ends the child too, and so does the end
of this process, however it comes. Memory is limited by the machine alone: at its peak the child
holds about five times the weights in float32 (GPT-2 124M: 2.4 GB).
"""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, MissingExtraError, StorageError
from ..strict_json import load_json_object, quoted

PACKAGES = ("torch", "transformers", "optimum")
# Names the interpreter of another environment that has the extra "optimum": its packages and those
# of "hub" cannot stand side by side.
OTHER_PYTHON = "POCKETLM_OPTIMUM_PYTHON"
LARGEST_ANSWER = 1_000_000  # bytes

# No network, no telemetry, no code from elsewhere; every weight outside the graph's own file.
SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "ORT_DISABLE_TELEMETRY": "1",
    "TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1",
    "FORCE_ONNX_EXTERNAL_DATA": "1",
    "PYTHONWARNINGS": "ignore",
}
# Overrides of the above, and secrets that loading from a folder does not need.
REMOVED = ("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


@dataclass(frozen=True)
class Trace:
    """What the child left in its folder beside model.onnx and model.onnx_data."""

    versions: dict[str, str]  # of the packages that made the graph
    sizes: dict[str, int]  # hidden_size, num_heads, context_length, as far as the config has them


def run_trace(checkpoint: Path, out: Path) -> Trace:
    """Traces ``checkpoint`` into the existing folder ``out``, in a child process.

    The child runs in this interpreter, or in the one that ``POCKETLM_OPTIMUM_PYTHON`` names. Raises
    MissingExtraError, CheckpointError with the child's last word, or StorageError.
    """
    check_packages()
    log = out / "log.txt"
    with open(log, "wb") as stream:
        code = _run([*_program(), str(checkpoint), str(out)], stream)
    if code:
        raise _failure(checkpoint, out, code)
    answer = load_json_object(out / "trace.json", LARGEST_ANSWER, CheckpointError)
    versions, sizes = answer.get("versions"), answer.get("sizes")
    if not isinstance(versions, dict) or not isinstance(sizes, dict):
        raise CheckpointError(
            f"{out / 'trace.json'}: found no versions and sizes, expected those of the tracing "
            "process; this is a bug in pocketlm"
        )
    return Trace(versions, sizes)


def check_packages() -> None:
    """Raises MissingExtraError where the child will not find what it needs, as far as is known."""
    other = os.environ.get(OTHER_PYTHON)
    if other:
        if not os.access(other, os.X_OK):
            raise MissingExtraError(
                f"{OTHER_PYTHON}: found no program {quoted(other)}, expected the Python of an "
                'environment with "pocketlm[optimum]"; correct it, or unset it'
            )
        return  # what is missing there, its child says
    for name in PACKAGES:
        if importlib.util.find_spec(name) is None:
            raise MissingExtraError(
                f"exporting with --via optimum needs the package {name!r}, which is not installed; "
                'install it with: pip install "pocketlm[optimum]", into an environment of its own, '
                f"and name that one's Python in {OTHER_PYTHON}"
            )


def _program() -> list[str]:
    """Without the current folder on the path of modules (-P)."""
    python = os.environ.get(OTHER_PYTHON) or sys.executable
    return [python, "-P", "-m", f"{__package__}.child"]


def _run(command: list[str], log: Any) -> int:
    environment = {name: value for name, value in os.environ.items() if name not in REMOVED}
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,  # its end tells the child that this process has ended
        stdout=log,
        stderr=subprocess.STDOUT,
        env=environment | SETTINGS,
        start_new_session=True,  # a Ctrl-C reaches this process, which then ends the child
    )
    try:
        return process.wait()
    finally:
        process.kill()
        process.communicate()


def _failure(checkpoint: Path, out: Path, code: int) -> CheckpointError | StorageError:
    answer = out / "error.json"
    if answer.is_file():
        content = load_json_object(answer, LARGEST_ANSWER, CheckpointError)
        message, disk = str(content.get("message")), bool(content.get("disk"))
        if disk:
            return StorageError(
                f"{out.parent}: the disk is full ({message}), expected room for the weights in "
                "float32 twice; nothing was kept - free some space or choose another place"
            )
        return CheckpointError(f"{checkpoint}: Optimum cannot export it: {message}")
    if code < 0:
        name = signal.Signals(-code).name
        hint = "; the memory was probably too small" if -code == signal.SIGKILL else ""
        return CheckpointError(f"{checkpoint}: the tracing process was ended by {name}{hint}")
    lines = (out / "log.txt").read_text("utf-8", "replace").splitlines()
    last = next((line.strip() for line in reversed(lines) if line.strip()), "no message")
    return CheckpointError(f"{checkpoint}: the tracing process failed: {last[:500]}")
