"""What evaluating a text costs beside the forward passes, and whether its memory grows.

    python -m pocketlm.benchmarks.quality.cost out-fp32/ out-int4/ --text novel.txt

Every number of tokens is a process of its own. The forward passes are timed where they are called,
within the evaluation, so that the machine's drift is in both: what is beside them is reading and
encoding the text, scoring logits, and adding up. The peak of memory is the process's, models
included.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from pathlib import Path
from typing import Any

from ...export.folder import ModelFolder
from ...export.memory import peak_rss_bytes
from ...export.quantities import megabytes
from ...export.threads import default_threads
from ...runtime.session import Session
from ..programs import errors_in_a_line, given_path, thread_count
from ..tables import Table
from .documents import check_files
from .measure import evaluate
from .plan import check_texts


class TimedSession(Session):
    """Counts the seconds that its steps take."""

    seconds = 0.0

    def step(self, *arguments: Any) -> Any:
        """As the session's."""
        return self._timed(super().step, *arguments)

    def all_logits(self, *arguments: Any) -> Any:
        """As the session's."""
        return self._timed(super().all_logits, *arguments)

    def _timed(self, run: Any, *arguments: Any) -> Any:
        started = time.perf_counter()
        result = run(*arguments)
        self.seconds += time.perf_counter() - started
        return result


def cost(models: list[Path], text: Path, limit: int, threads: int) -> dict[str, float]:
    """Seconds of an evaluation on ``limit`` tokens, of its forward passes, and peak memory."""
    folders = {str(path): ModelFolder.open(path) for path in models}
    started = time.perf_counter()
    plan = check_texts(folders, [text], limit=limit)
    checked = time.perf_counter() - started
    sessions = {name: TimedSession(folder, threads) for name, folder in folders.items()}
    started = time.perf_counter()
    tokens = evaluate(plan, dict(sessions))["tokens"]
    return {
        "tokens": tokens,
        "seconds": checked + time.perf_counter() - started,
        "forward_seconds": sum(session.seconds for session in sessions.values()),
        "peak_rss_bytes": peak_rss_bytes(),
    }


def main() -> None:
    """Prints a row per number of tokens."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "models", type=given_path, nargs="+", help="model folders, the reference first"
    )
    parser.add_argument("--text", type=given_path, required=True, help="a UTF-8 text")
    parser.add_argument("--limit", type=int, nargs="+", default=[10_000, 100_000], help="tokens")
    parser.add_argument("--threads", type=thread_count, default=default_threads())
    arguments = parser.parse_args()
    with errors_in_a_line("cost"):
        check_files([arguments.text])
        rows = [_row(arguments, limit) for limit in arguments.limit]
    columns = ("tokens", "seconds", "forward passes", "ratio", "peak RSS MB")
    print(Table(columns, rows, labels=0).markdown())


def _row(arguments: argparse.Namespace, limit: int) -> tuple[str, ...]:
    """Measured in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.apply(cost, (arguments.models, arguments.text, limit, arguments.threads))
    return (
        f"{found['tokens']:,}",
        f"{found['seconds']:.1f}",
        f"{found['forward_seconds']:.1f}",
        f"{found['seconds'] / found['forward_seconds']:.3f}",
        megabytes(found["peak_rss_bytes"]),
    )


if __name__ == "__main__":
    main()
