"""The far side of a comparison: one adapter in a process of its own, driven by JSON lines.

    python -P protocol.py ADAPTER convert CHECKPOINT OUT PRECISION OURS
    python -P protocol.py ADAPTER serve FOLDER PRECISION THREADS

ADAPTER is the path of a file of ``adapters``, or a module's name. It runs in the peer's
environment, where pocketlm is not installed: only the standard library is used here, and NumPy for
scores. Both write one JSON object when they are done or ready, and ``serve`` then one for each line
it reads:

    {"do": "generate", "ids": [ints], "count": n}  ->  {"seconds": s, "tokens": [ints]}
    {"do": "generate_many", "prompts": [[ints]], "count": n}
                                                   ->  {"seconds": s, "tokens": [[ints]]}
    {"do": "memory"}                               ->  {"peak_rss_bytes": n}
    {"do": "reads"}                                ->  {"bytes_per_token": n or null}
    {"do": "score", "ids": [ints], "scored": n, "file": NPY, "first": row}
                                                   ->  {"loss": [floats], "kl": …, …}

The last compares the model's logits for the last ``scored`` of the ids with the rows of the file
from ``first`` on, our fp32's for the same tokens: what comes back is the fields of ``Rows`` of
``quality.divergence``. Logits stay on this side: those of a text may be gigabytes. Any other
``do`` calls that method of the adapter's model. An error ends the process, with
{"error": "Class: message"} as the last line; stderr has the traceback, then the message.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any, TextIO

OPTIONAL = ("logits", "generate_many", "own_bench")  # methods that an adapter may leave out
DIVERGENCE = Path(__file__).parent.parent / "quality" / "divergence.py"


def load_adapter(name: str) -> ModuleType:
    """The module of that name, or the file of that path.

    A file is called after its place here, never like the package it drives, and its folder is not
    searched: ``import llama_cpp`` in llama_cpp.py means the package.
    """
    if not name.endswith(".py"):
        return importlib.import_module(name)
    spec = importlib.util.spec_from_file_location(f"peer_{Path(name).stem}", name)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look for theirs there
    spec.loader.exec_module(module)
    return module


def peak_rss_bytes() -> int:
    """Highest resident set of this process so far, in bytes."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def generate(model: Any, ids: list[int], count: int) -> dict[str, Any]:
    """The tokens, and the seconds they took from the first prompt token to the last new one."""
    started = time.perf_counter()
    tokens = model.generate(ids, count)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "tokens": _checked(tokens, count)}


def generate_many(model: Any, prompts: list[list[int]], count: int) -> dict[str, Any]:
    """Likewise of several prompts at once."""
    started = time.perf_counter()
    rows = model.generate_many(prompts, count)
    seconds = time.perf_counter() - started
    if len(rows) != len(prompts):
        raise ValueError(f"{len(rows)} rows came, expected {len(prompts)}")
    return {"seconds": seconds, "tokens": [_checked(row, count) for row in rows]}


def _checked(tokens: Sequence[Any], count: int) -> list[int]:
    if len(tokens) != count:
        raise ValueError(f"{len(tokens)} tokens came, expected {count}")
    return [int(token) for token in tokens]


def score(model: Any, ids: list[int], scored: int, file: str, first: int) -> dict[str, Any]:
    """What the model says of the last ``scored`` of ``ids``, beside what the file's rows do."""
    import numpy as np

    logits = model.logits(ids[:-1])[-scored:]
    expected = np.load(file, mmap_mode="r")[first : first + scored]
    if logits.shape != expected.shape:
        raise ValueError(f"logits of shape {logits.shape} came, expected {expected.shape}")
    comparison = load_adapter(str(DIVERGENCE)).Comparison(logits.shape[-1])
    rows = comparison.compare([expected, logits], np.array(ids[-scored:]))[1]
    return {name: values.tolist() for name, values in vars(rows).items()}


def bytes_per_token(model: Any) -> int | None:
    """Bytes of weights that a token reads, where the adapter can tell."""
    return model.bytes_per_token() if hasattr(model, "bytes_per_token") else None


def answer(model: Any, request: dict[str, Any]) -> dict[str, Any]:
    """What ``model`` says to one request."""
    verb = request.pop("do")
    if verb == "generate":
        return generate(model, **request)
    if verb == "generate_many":
        return generate_many(model, **request)
    if verb == "memory":
        return {"peak_rss_bytes": peak_rss_bytes()}
    if verb == "reads":
        return {"bytes_per_token": bytes_per_token(model)}
    if verb == "score":
        return score(model, **request)
    found: dict[str, Any] = getattr(model, verb)(**request)
    return found


def serve(adapter: ModuleType, replies: TextIO, folder: str, precision: str, threads: str) -> None:
    """Opens the model and answers until stdin ends."""
    model = adapter.Model(Path(folder), precision, int(threads))
    opened = {
        "version": version(adapter.PACKAGE),
        "peak_rss_bytes": peak_rss_bytes(),
        "can": [name for name in OPTIONAL if hasattr(model, name)],
        "settings": getattr(model, "settings", ""),
    }
    print(json.dumps(opened), file=replies, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(model, json.loads(line))), file=replies, flush=True)


def convert(adapter: ModuleType, replies: TextIO, *arguments: str) -> None:
    """Writes the peer's own files of a checkpoint."""
    checkpoint, out, precision, ours = arguments
    note = adapter.convert(Path(checkpoint), Path(out), precision, Path(ours))
    print(json.dumps({"note": note}), file=replies, flush=True)


def main() -> None:
    """Runs one verb; whatever a library prints goes to stderr, so that replies stay alone."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    _, name, verb, *arguments = sys.argv
    try:
        verbs: dict[str, Callable[..., None]] = {"serve": serve, "convert": convert}
        verbs[verb](load_adapter(name), replies, *arguments)
    except KeyboardInterrupt:
        sys.exit(130)
    except BaseException as error:
        traceback.print_exc()
        message = " ".join(f"{type(error).__name__}: {error}".split())
        print(message, file=sys.stderr)  # its beginning says more than a long one's last line
        print(json.dumps({"error": message}), file=replies, flush=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
