"""Run by another process, perhaps emulated: saves what graphs make of their one input.

python outputs_of_graphs.py FOLDER       # each NAME.onnx and NAME.x.npy gives NAME.y.npy,
                                         # and NAME.bare.npy without the options of our graphs
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnxruntime

from pocketlm.export.genai import SESSION_OPTIONS


def main() -> None:
    """Reads the argument, runs every graph once with the options and once without."""
    for graph in Path(sys.argv[1]).rglob("*.onnx"):
        x = np.load(graph.with_suffix(".x.npy"))
        for suffix, entries in ((".y.npy", SESSION_OPTIONS), (".bare.npy", {})):
            options = onnxruntime.SessionOptions()
            for name, value in entries.items():
                options.add_session_config_entry(name, value)
            session = onnxruntime.InferenceSession(
                graph, options, providers=["CPUExecutionProvider"]
            )
            y = session.run(None, {session.get_inputs()[0].name: x})[0]
            np.save(graph.with_suffix(suffix), y)


if __name__ == "__main__":
    main()
