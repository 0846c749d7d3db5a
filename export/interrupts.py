"""What Ctrl-C means, for as long as a command says so."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

INTERRUPTED = 130  # exit code


@contextmanager
def on_interrupt(handler: Any) -> Iterator[None]:
    """Sets the handler of Ctrl-C, unless it is ignored or this is not the main thread."""
    old = signal.getsignal(signal.SIGINT)
    try:
        if callable(old):
            signal.signal(signal.SIGINT, handler)
    except ValueError:
        old = None
    try:
        yield
    finally:
        if callable(old):
            signal.signal(signal.SIGINT, old)


@contextmanager
def interrupts_held() -> Iterator[None]:
    """A Ctrl-C takes effect when this has ended, well or not; for what may not end half-way."""
    held = False

    def hold(*_: object) -> None:
        nonlocal held
        held = True

    try:
        with on_interrupt(hold):
            yield
    finally:
        if held:
            signal.raise_signal(signal.SIGINT)
