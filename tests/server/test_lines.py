"""Lines of a log: in their order, and nobody waits for who does not read them."""

from __future__ import annotations

import os

import pytest

from pocketlm.runtime.server.lines import Lines

pytestmark = pytest.mark.serve


def test_a_pipe_that_nobody_reads_keeps_nobody_waiting() -> None:
    read, write = os.pipe()
    count = 5000  # far more than a pipe and the queue before it hold
    lines = Lines(write, lambda number: f"lost {number}")
    for number in range(count):
        lines.add(f"{number:0100}")
    data = b""
    while not data.endswith(b"last\n"):
        data += os.read(read, 1 << 16)
        if b"lost" in data and b"last" not in data:
            lines.add("last")
    lines.close()
    os.close(write)
    os.close(read)
    *found, last = data.decode().splitlines()
    lost = sum(int(line.split()[1]) for line in found if line.startswith("lost"))
    kept = [int(line) for line in found if line.isdigit()]
    assert lost > 0 and len(kept) + lost >= count
    assert kept == sorted(kept)
    assert last == "last"


def test_what_is_closed_goes_on_with_the_next_line() -> None:
    read, write = os.pipe()
    lines = Lines(write, str)
    for line in ("one", "two"):
        lines.add(line)
        lines.close()
    os.close(write)
    with os.fdopen(read) as written:
        assert written.read() == "one\ntwo\n"


def test_who_has_left_does_not_matter() -> None:
    read, write = os.pipe()
    os.close(read)
    lines = Lines(write, str)
    lines.add("one")
    lines.close()
    os.close(write)
