"""Run by another process, perhaps emulated: saves what graphs make of their one input.

python outputs_of_graphs.py FOLDER       # each NAME.onnx and NAME.x.npy gives NAME.y.npy
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnxruntime


def main() -> None:
    """Reads the argument, runs every graph once."""
    for graph in Path(sys.argv[1]).glob("*.onnx"):
        session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
        x = np.load(graph.with_suffix(".x.npy"))
        y = session.run(None, {session.get_inputs()[0].name: x})[0]
        np.save(graph.with_suffix(".y.npy"), y)


if __name__ == "__main__":
    main()
