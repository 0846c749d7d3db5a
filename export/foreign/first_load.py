"""The first load of another's graph, in a child process with limits: what it may break is its own.

    python -P -m pocketlm.export.foreign.first_load FOLDER MEMORY_BYTES

The graph has passed our own check by then. The child opens it on ONNX Runtime, runs a few tokens,
and ends; a crash, a hang or memory without end becomes an error of the parent.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..folder import ModelFolder, cache_names
from ..frozen import is_frozen
from ..manifest_file import read_manifest
from ..strict_json import shown

TOKENS = 4
# Beside several times the weights: what ONNX Runtime and Python take by themselves.
MOST_BYTES = 2 << 30
WEIGHTS_TIMES = 4
MOST_SECONDS, BYTES_PER_SECOND = 60, 20_000_000
LONGEST_WORD = 300


def first_load(folder: ModelFolder) -> None:
    """Raises CheckpointError unless a child process opens and runs the graph of ``folder``."""
    if is_frozen():  # which has no Python beside it
        raise CheckpointError(
            "found a foreign graph in a frozen application, expected a Python beside it for the "
            "graph's first load; make a model folder with pocketlm export --allow-foreign"
        )
    size = folder.weights_bytes
    seconds = MOST_SECONDS + size // BYTES_PER_SECOND
    memory = MOST_BYTES + WEIGHTS_TIMES * size
    command = [sys.executable, "-P", "-m", __name__, str(folder.path), str(memory)]
    try:
        ended = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds
        )
    except subprocess.TimeoutExpired as error:
        raise _refused(f"took more than {seconds} seconds") from error
    if ended.returncode < 0:
        raise _refused(f"ended the process by signal {-ended.returncode}")
    if ended.returncode:
        lines = ended.stderr.decode("utf-8", "replace").split("\n")
        word = next((line.strip() for line in reversed(lines) if line.strip()), "no message")
        raise _refused(f"failed: {shown(word, LONGEST_WORD)}")


def _refused(found: str) -> CheckpointError:
    return CheckpointError(
        f"the foreign graph's first load {found}, expected logits; this runtime cannot run it"
    )


def main() -> None:
    """The child."""
    folder, memory = Path(sys.argv[1]), int(sys.argv[2])
    _limit_memory(memory)
    import numpy as np
    import onnxruntime

    written = ModelFolder(folder, read_manifest(folder / "pocketlm.json"))
    shape = written.shape
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        written.graph_file(), options, providers=["CPUExecutionProvider"]
    )
    empty = np.zeros((1, shape.kv_heads, 0, shape.head_size), np.float32)
    count = min(TOKENS, shape.context_length)
    feeds: dict[str, Any] = {name: empty for name, _ in cache_names(shape.num_layers)}
    feeds["input_ids"] = np.arange(count)[None] % shape.vocab_size
    feeds["attention_mask"] = np.ones((1, count), np.int64)
    feeds["position_ids"] = np.arange(count)[None]
    wanted = {value.name for value in session.get_inputs()}
    (logits,) = session.run(
        ["logits"], {name: array for name, array in feeds.items() if name in wanted}
    )
    if logits.shape != (1, count, shape.vocab_size) or not np.isfinite(logits).all():
        raise SystemExit(f"logits of {logits.shape}, or some that are no numbers")


def _limit_memory(num_bytes: int) -> None:
    """Of what is allocated; Windows has no such limit."""
    try:
        import resource
    except ImportError:
        return
    with contextlib.suppress(ValueError, OSError):  # a lower limit was set from outside
        resource.setrlimit(resource.RLIMIT_DATA, (num_bytes, num_bytes))


if __name__ == "__main__":
    main()
