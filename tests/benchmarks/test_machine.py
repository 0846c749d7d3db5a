"""What a measurement says about its machine, and the peak of memory."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys

from pocketlm.benchmarks.machine import describe_machine
from pocketlm.export.memory import peak_rss_bytes


def test_description_has_all_that_a_reader_needs_and_is_json() -> None:
    found = json.loads(json.dumps(describe_machine(3)))
    assert list(found) == [
        "cpu",
        "features",
        "cores",
        "threads",
        "memory_bytes",
        "system",
        "python",
        "onnxruntime",
        "numpy",
        "pocketlm",
        "load_average",
        "command",
    ]
    assert found["threads"] == 3
    assert found["cores"] == os.cpu_count()
    assert found["memory_bytes"] > 1 << 28
    assert found["python"] == platform.python_version()
    assert len(found["load_average"]) == 3
    assert found["cpu"]


def test_peak_memory_grows_with_what_is_touched_and_stays() -> None:
    # In a process of its own: the peak of this one may be anywhere above.
    program = """
from pocketlm.export.memory import peak_rss_bytes
print(peak_rss_bytes())
data = bytearray(b"x") * 50_000_000
print(peak_rss_bytes())
del data
print(peak_rss_bytes())
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    before, during, after = map(int, done.stdout.split())
    # The kernel counts pages in batches per processor, so each figure is off by some hundred kB.
    assert 49_000_000 < during - before < 60_000_000
    assert after > during - 1_000_000
    assert 1_000_000 < before < 1 << 30


def test_peak_memory_is_in_bytes() -> None:
    assert peak_rss_bytes() > 10_000_000  # NumPy and ONNX Runtime alone take more
