"""One model in one process: answers requests for timings on stdin with JSON lines on stdout.

Several sessions in one process disturb each other's threads and caches, so every model measured
gets a process of its own; ``speed`` talks to several in turn, so that drift of the machine cancels.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np

from ..export.folder import ModelFolder
from ..export.memory import peak_rss_bytes
from ..runtime.generate import generate_tokens, prefill
from ..runtime.sampling import SamplingOptions, make_sampler
from ..runtime.session import Session


class Worker:
    """Holds a session; each public method is a request."""

    def __init__(self, path: str, threads: int) -> None:
        started = time.perf_counter()
        self.session = Session(ModelFolder.open(path), threads)
        self.load_seconds = time.perf_counter() - started
        self._ids = np.random.default_rng(0).integers(
            0, self.session.shape.vocab_size, self.session.shape.context_length
        )
        self._in_kernel = 0.0
        self._watch_kernel()

    def _watch_kernel(self) -> None:
        """Counts the seconds inside ONNX Runtime; the rest of a step is Python's own share."""
        run = self.session._session.run_with_iobinding

        def timed(*arguments: Any) -> None:
            started = time.perf_counter()
            run(*arguments)
            self._in_kernel += time.perf_counter() - started

        self.session._session.run_with_iobinding = timed

    def prefill(self, tokens: int) -> dict[str, float]:
        """Seconds to feed ``tokens`` to an empty cache."""
        cache = self.session.new_cache()
        started = time.perf_counter()
        prefill(self.session, self._ids[:tokens].tolist(), cache)
        return {"seconds": time.perf_counter() - started}

    def decode(self, depth: int, tokens: int) -> dict[str, float]:
        """Seconds per greedy token at context ``depth``, and the share outside ONNX Runtime."""
        cache = self.session.new_cache()
        if depth > 1:
            prefill(self.session, self._ids[: depth - 1].tolist(), cache)
        sampler = make_sampler(SamplingOptions(temperature=0))
        steps = generate_tokens(
            self.session, [int(self._ids[depth])], sampler, tokens + 1, cache=cache
        )
        next(steps)
        self._in_kernel = 0.0
        started = time.perf_counter()
        for _ in steps:
            pass
        seconds = time.perf_counter() - started
        return {
            "seconds": seconds / tokens,
            "outside_kernel": (seconds - self._in_kernel) / seconds,
            "kv_bytes": cache.num_bytes,
        }

    def memory(self) -> dict[str, float]:
        """Peak resident bytes so far, and seconds it took to open the folder."""
        return {"peak_rss_bytes": peak_rss_bytes(), "load_seconds": self.load_seconds}


def main() -> None:
    """``worker FOLDER THREADS``: one request per line, {"do": name, …arguments}."""
    worker = Worker(sys.argv[1], int(sys.argv[2]))
    print(json.dumps(worker.memory()), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        answer = getattr(worker, request.pop("do"))(**request)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
