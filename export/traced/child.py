"""The child process of ``via_optimum``: torch loads a checkpoint, and Optimum traces it.

    python -P -m pocketlm.export.traced.child CHECKPOINT OUT

OUT gets ``model.onnx``, ``model.onnx_data`` (every tensor from 100 bytes up) and ``trace.json``:
who made them, and the sizes that transformers reads from the configuration. On an error it gets
``error.json`` instead, and the exit code is 1. Nothing is downloaded, no code of the checkpoint is
run, and pickles are read with ``weights_only`` alone; the environment given by the parent sees to
that as well.

The traced graph is run on ONNX Runtime before it is handed over: a trace follows the one input it
was made with, so its logits are compared with torch's on another.
"""

from __future__ import annotations

import errno
import json
import os
import pickle
import sys
import threading
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from ..errors import PocketLMError
from ..folder import GRAPH_FILE, DecoderShape, cache_names
from .contract import check_trace, read_shape

TASK = "text-generation-with-past"
# Operators of the quantizing pass take their axes as inputs, which begins with opset 18.
OPSET = 18
# A prompt, a token, and several tokens after both.
CHECKED_CHUNKS = (7, 1, 3)
TOLERANCE = 1e-3  # of the largest logit; other kernels sum in another order
# Rotary embeddings that change once a text outgrows the original length. The trace is made with a
# short text, so it holds up to that length only.
LENGTH_DEPENDENT = ("dynamic", "longrope", "su")
# Where configurations say how many tokens a model can attend to; the first that is there counts.
CONTEXT_FIELDS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx")


class TraceError(Exception):
    """What goes to the parent as it stands."""


def main() -> None:
    """Traces; any error becomes ``error.json``."""
    checkpoint, out = Path(sys.argv[1]), Path(sys.argv[2])
    threading.Thread(target=end_with_parent, daemon=True).start()
    try:
        trace(checkpoint, out)
    except Exception as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if full:  # room for what is written next
            for file in out.iterdir():
                file.unlink()
        message = {"message": error_message(error), "disk": full}
        (out / "error.json").write_text(json.dumps(message), encoding="utf-8")
        raise


def end_with_parent() -> None:
    """Ends this process when stdin does: the parent holds its other end, and never writes."""
    os.read(0, 1)
    os._exit(1)


def error_message(error: BaseException) -> str:
    """One line that says what was wrong, for the parent."""
    if isinstance(error, TraceError | PocketLMError):
        return str(error)
    cause: BaseException | None = error
    while cause is not None:  # transformers puts an error of its own in front
        if isinstance(cause, pickle.UnpicklingError):
            return f"the weights are more than weights, so they are not loaded ({_line(cause)})"
        cause = cause.__cause__ or cause.__context__
    return f"{type(error).__name__}: {_line(error)}"


def _line(error: BaseException) -> str:
    """What torch and others write at length, cut to what says most."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    named = [line for line in lines if "GLOBAL" in line or "Unsupported" in line]
    return (named or lines or [""])[0].split(". ")[0][:400]


def trace(checkpoint: Path, out: Path) -> None:
    """Writes the traced graph of ``checkpoint``, its weights in float32, and ``trace.json``."""
    import torch
    from optimum.exporters.onnx import onnx_export_from_model
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(checkpoint, local_files_only=True, trust_remote_code=False)
    _check_support(config)
    model = AutoModelForCausalLM.from_pretrained(
        checkpoint,
        config=config,
        local_files_only=True,
        trust_remote_code=False,
        weights_only=True,
        torch_dtype=torch.float32,
        # Plain products and a softmax, which can be recognised in the graph.
        attn_implementation="eager",
    )
    model.config.use_cache = True
    onnx_export_from_model(
        model,
        out,
        opset=OPSET,
        task=TASK,
        do_validation=False,
        # Folding would store the transposed weights beside the weights, without their names.
        do_constant_folding=False,
        preprocessors=[],
    )
    sizes = config_sizes(model.config)
    graph = ir.load(out / GRAPH_FILE)
    check_trace(graph)
    shape = read_shape(graph, sizes)
    difference = compare(model, out / GRAPH_FILE, shape)
    if not difference < TOLERANCE:
        raise TraceError(
            f"the traced graph's logits differ from torch's by {difference:.1e} of the largest"
        )
    packages = ("optimum", "optimum-onnx", "transformers", "torch")
    description = {
        "versions": {package: version(package) for package in packages},
        "sizes": sizes,
    }
    (out / "trace.json").write_text(json.dumps(description), encoding="utf-8")


def _check_support(config: Any) -> None:
    from optimum.exporters.tasks import TasksManager

    name = config.model_type
    known = TasksManager.get_supported_model_type_for_task(TASK, "onnx")
    if name not in known:
        raise TraceError(
            f"model_type is {name!r}, expected one that Optimum exports for text generation "
            f"({', '.join(sorted(known))})"
        )


def config_sizes(config: Any) -> dict[str, int]:
    """Sizes that are not in the graph, by the names transformers gives them everywhere."""
    text = config.get_text_config()
    fields = {
        "hidden_size": ("hidden_size",),
        "num_heads": ("num_attention_heads",),
        "context_length": CONTEXT_FIELDS,
    }
    sizes = {}
    for name, candidates in fields.items():
        found = [getattr(text, field, None) for field in candidates]
        numbers = [number for number in found if isinstance(number, int) and number > 0]
        if numbers:
            sizes[name] = numbers[0]
    scaling = getattr(text, "rope_scaling", None) or {}
    if scaling.get("rope_type", scaling.get("type")) in LENGTH_DEPENDENT:
        original = scaling.get("original_max_position_embeddings")
        original = original or getattr(text, "original_max_position_embeddings", None)
        if isinstance(original, int) and "context_length" in sizes:
            sizes["context_length"] = min(original, sizes["context_length"])
    return sizes


def compare(model: Any, graph: Path, shape: DecoderShape) -> float:
    """Largest difference of the logits of ``graph`` and ``model``, in units of the largest logit.

    ``model`` sees all tokens at once, the graph sees them in ``CHECKED_CHUNKS`` with its cache.
    """
    import onnxruntime
    import torch

    total = sum(CHECKED_CHUNKS)
    ids = np.random.default_rng(0).integers(0, shape.vocab_size, (1, total))
    with torch.no_grad():
        expected = model(input_ids=torch.from_numpy(ids), use_cache=False).logits.numpy()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    inputs = {value.name for value in session.get_inputs()}
    outputs = [value.name for value in session.get_outputs()]
    names = cache_names(shape.num_layers)
    empty = np.zeros((1, shape.kv_heads, 0, shape.head_size), np.float32)
    past = {name: empty for name, _ in names}
    rows, start = [], 0
    for count in CHECKED_CHUNKS:
        stop = start + count
        feeds: dict[str, Any] = {
            "input_ids": ids[:, start:stop],
            "attention_mask": np.ones((1, stop), np.int64),
            "position_ids": np.arange(start, stop)[None],
        }
        feeds = {name: array for name, array in feeds.items() if name in inputs} | past
        found = dict(zip(outputs, session.run(None, feeds), strict=True))
        rows.append(found["logits"])
        past = {name: found[present] for name, present in names}
        start = stop
    difference = np.abs(np.concatenate(rows, axis=1) - expected).max() / np.abs(expected).max()
    return float(difference)


if __name__ == "__main__":
    main()
