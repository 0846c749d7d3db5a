"""One model in one process: answers requests for timings on stdin with JSON lines on stdout.

Several sessions in one process disturb each other's threads and caches, so every model measured
gets a process of its own; ``remote`` talks to several in turn, so that drift of the machine
cancels. Tests are those of llama-bench: n forward passes of one token each for the generation of
n, after the prompt's in batches; here through the loop that ``pocketlm run`` uses, greedy.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from ...export.errors import PocketLMError
from ...export.folder import ModelFolder
from ...export.memory import memory_errors, peak_rss_bytes
from ...runtime.chunks import prefill
from ...runtime.decode import generate
from ...runtime.request import GREEDY, Request
from ...runtime.tokenizer import Tokenizer
from ..session_variant import Variant
from .energy import EnergyMeter

FIRST_PROMPT = 8  # tokens of the prompt whose first answer is waited for in a fresh process


class Worker:
    """Holds a session; each public method is a request."""

    def __init__(self, path: str, threads: int, variant: Variant) -> None:
        """Opens the folder as ``pocketlm run`` does: hashes known, tokenizer, session."""
        started = time.perf_counter()
        folder = ModelFolder.open(path)
        folder.verify()
        Tokenizer.open(folder.path / "tokenizer.json")
        self.session = variant.open(folder, threads)
        self.load_seconds = time.perf_counter() - started
        self._ids = np.random.default_rng(0).integers(
            0, self.session.shape.vocab_size, self.session.shape.context_length
        )
        self._energy = EnergyMeter.open()

    def measure(self, prompt: int, generation: int, depth: int, batch: int) -> dict[str, Any]:
        """Times ``prompt`` tokens in batches, then ``generation`` one by one, after ``depth``.

        The tokens of ``depth`` are in the cache before the time begins. Beside the seconds: the
        share of them outside ONNX Runtime, the joules (None where they cannot be read) and the
        process's peak resident bytes so far.
        """
        cache = self.session.new_cache()
        if depth:
            prefill(self.session, self._ids[:depth].tolist(), cache)
        # A generation goes on from one token at least; the last one sampled is not fed.
        prompt_ids = self._ids[: depth + max(prompt, 1)].tolist()
        passes = generation if prompt == 0 else generation + 1
        self.session.prepare(min(prompt, batch))  # which opens what was closed meanwhile
        with self._timed() as answer:
            if generation == 0:
                prefill(self.session, prompt_ids[depth:], cache, chunk_size=batch)
            else:
                request = Request(prompt_ids, GREEDY, passes, chunk_size=batch)
                for _ in generate(self.session, request, cache):
                    pass
        assert cache.length == depth + prompt + generation
        return answer

    @contextmanager
    def _timed(self) -> Iterator[dict[str, Any]]:
        answer: dict[str, Any] = {}
        if self._energy is not None:
            self._energy.start()
        in_kernel, started = self.session.run_seconds, time.perf_counter()
        yield answer
        seconds = time.perf_counter() - started
        answer["seconds"] = seconds
        # What is not inside ONNX Runtime is Python's own share.
        in_kernel = self.session.run_seconds - in_kernel
        answer["outside_kernel"] = (seconds - in_kernel) / seconds
        answer["joules"] = None if self._energy is None else self._energy.joules()
        answer["peak_rss_bytes"] = peak_rss_bytes()

    def first_token(self) -> dict[str, Any]:
        """The first token after a prompt of a few."""
        ids = self._ids[:FIRST_PROMPT].tolist()
        (step,) = generate(self.session, Request(ids, GREEDY, 1))
        return {"token": step.token}


def main() -> None:
    """``worker FOLDER THREADS KV PREFILL``: one request per line, {"do": name, …arguments}.

    The first answer says that the folder is open. An error of ours, memory that ran out
    among them, is answered as {"error": text, "exit_code": number}.
    Ctrl-C is the caller's to hear: it ends this process by closing its pipe, or kills it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "w")  # whatever else prints to stdout goes to stderr
    os.dup2(2, 1)
    try:
        with memory_errors("opening it"):
            worker = Worker(sys.argv[1], int(sys.argv[2]), Variant(*sys.argv[3:]))
    except PocketLMError as error:
        print(json.dumps(_refusal(error)), file=answers, flush=True)
        return
    print(json.dumps({"load_seconds": worker.load_seconds}), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        what = request.pop("do")
        try:
            with memory_errors(what):
                answer = getattr(worker, what)(**request)
        except PocketLMError as error:
            answer = _refusal(error)
        print(json.dumps(answer), file=answers, flush=True)


def _refusal(error: PocketLMError) -> dict[str, Any]:
    return {"error": str(error), "exit_code": error.exit_code}


if __name__ == "__main__":
    main()
