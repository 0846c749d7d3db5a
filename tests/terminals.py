"""Who types: into a program at a terminal of its own, or into one in this process."""

from __future__ import annotations

import io
import os
import select
import subprocess
import sys
import time
from pathlib import Path


class Keyboard(io.StringIO):
    """Lines that are typed, not piped."""

    def isatty(self) -> bool:
        return True


# Opening a terminal makes it the one whose Ctrl-C reaches this process. The model is slowed down,
# so that an answer is under way when that comes.
AT_A_TERMINAL = """
import os, signal, sys, time
os.open(os.ttyname(0), os.O_RDWR)
# Whoever runs the tests in the background may ignore it, and that is inherited.
signal.signal(signal.SIGINT, signal.default_int_handler)
from pocketlm.runtime.session import Session
step = Session.step
def slow(*arguments):
    time.sleep(0.01)
    return step(*arguments)
Session.step = slow
from pocketlm.cli import main
main(sys.argv[1:])
"""


class Terminal:
    """A program at a terminal of its own."""

    def __init__(self, *arguments: str | Path) -> None:
        self.master, slave = os.openpty()
        self.seen = ""
        self.child = subprocess.Popen(
            [sys.executable, "-c", AT_A_TERMINAL, *map(str, arguments)],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            env=os.environ | {"TERM": "dumb", "INPUTRC": os.devnull},
        )
        self.slave = slave  # open, so that reading does not fail when the child ends

    def wait_for(self, text: str) -> str:
        """What was printed since the last wait, up to ``text``."""
        while text not in self.seen:
            assert select.select([self.master], [], [], 20)[0], f"no {text!r} in {self.seen!r}"
            self.seen += os.read(self.master, 1000).decode("utf-8", "replace")
        before, _, self.seen = self.seen.partition(text)
        return before

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def ask(self, text: str) -> None:
        """Types a message, and waits for the beginning of the answer."""
        self.type(f"{text}\n")
        self.wait_for(f"{text}\r\n")
        while len(self.seen) < 20:
            self.seen += os.read(self.master, 100).decode("utf-8", "replace")

    def interrupt(self) -> None:
        """Ctrl-C at the prompt: readline shows it a moment before it waits for a key, and hears
        a signal of that moment only with the next key."""
        time.sleep(0.3)
        self.type("\x03")

    def end(self) -> int:
        """The exit code."""
        return self.child.wait(20)

    def close(self) -> None:
        self.child.kill()
        self.child.wait()
        os.close(self.master)
        os.close(self.slave)
