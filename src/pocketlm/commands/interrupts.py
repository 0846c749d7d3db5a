"""Ctrl-C as a wish about what is under way, not as the end of the program."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pocketlm.cli import on_interrupt


@contextmanager
def interrupts_call(action: Callable[[], object]) -> Iterator[None]:
    """Ctrl-C calls ``action``, from another thread; nothing is raised.

    Python runs a signal's handler between two of its own instructions, so not before a chunk of the
    prompt, which may take seconds, is done. It writes the signal's number to a socket at once.
    """
    reader, writer = socket.socketpair()
    writer.setblocking(False)

    def wait() -> None:
        while number := reader.recv(1):
            if number == bytes([signal.SIGINT]):  # other signals write theirs
                action()

    thread = threading.Thread(target=wait, daemon=True)
    with reader, on_interrupt(lambda *_: None):
        before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        thread.start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)
            writer.close()  # ends the wait
            thread.join()
