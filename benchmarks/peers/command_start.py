"""How long ``pocketlm run`` takes from its start to its first text, as a person waits for it."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from ..exported_variants import run_options
from .environments import PeerError

PROMPT = "one two three four five six seven"  # about as many tokens as ``trials`` gives the others


def command_start(folder: Path, options: str, threads: int) -> float:
    """Seconds until the first byte; raises PeerError where none comes.

    ``options`` are those of a variant in one word, of which what follows "--" goes to ``run``.
    """
    command = [sys.executable, "-P", "-m", "pocketlm", "run", str(folder), PROMPT]
    command += ["--max-tokens", "1", "--ignore-eos", "--threads", str(threads)]
    started = time.perf_counter()
    with subprocess.Popen(
        [*command, *run_options(options)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        found = process.stdout.read(1)  # a token that is half a character comes at the end
        seconds = time.perf_counter() - started
        said = process.communicate()[1].decode(errors="replace").splitlines()
    if process.returncode or not found:
        last = next((line for line in reversed(said) if line.strip()), "it said nothing")
        raise PeerError(f"pocketlm run ended with exit code {process.returncode}: {last:.200}")
    return seconds
