"""What the programs of this folder have in common: kinds of options, and errors in one line."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..export.errors import PocketLMError, RequestError
from ..export.threads import check_threads

INTERRUPTED = 130  # exit code


def at_least(least: int) -> Callable[[str], int]:
    """The type of an option that takes whole numbers from ``least``."""

    def number(text: str) -> int:
        if (found := int(text)) < least:
            raise argparse.ArgumentTypeError(f"found {found}, expected at least {least}")
        return found

    return number


def thread_count(text: str) -> int:
    """The type of an option for CPU threads."""
    try:
        return check_threads(int(text))
    except RequestError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def model_name(text: str) -> str:
    """What names a model to the command line; not an empty name: that is a variable not set."""
    if not text.strip():
        raise argparse.ArgumentTypeError("found an empty name, is a variable not set?")
    return text


def given_path(text: str) -> Path:
    """A path; not an empty one, which pathlib would take for the current folder."""
    return Path(model_name(text))


def refuse_alone(
    parser: argparse.ArgumentParser,
    given: argparse.Namespace,
    needed: str,
    names: Sequence[str],
) -> None:
    """Ends the program where one of the options ``names`` is given, but not ``needed``."""
    for name in names:
        if getattr(given, name) is not None and not getattr(given, needed):
            parser.error(f"found --{name} without --{needed}, expected both; leave it out")


@contextmanager
def errors_in_a_line(program: str) -> Iterator[None]:
    """Ends the program with a line on stderr and the exit code of an error of ours."""
    try:
        yield
    except PocketLMError as error:
        print(f"{program}: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


class ChildError(PocketLMError):
    """A program of ours that was started has failed, and said why."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def output_of(*arguments: str) -> str:
    """What a Python of its own prints to stdout; ChildError with the last line it complained in."""
    done = subprocess.run([sys.executable, "-P", *arguments], capture_output=True, text=True)
    if done.returncode == INTERRUPTED:
        raise KeyboardInterrupt
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"found exit code {done.returncode}"]
        code = done.returncode if done.returncode > 0 else 1  # killed by a signal
        raise ChildError(said[-1].removeprefix("pocketlm: "), code)
    return done.stdout


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder for a while, where the environment names a cache in that one, which is made."""
    parent = Path(chosen) if (chosen := os.environ.get("POCKETLM_CACHE")) else None
    try:
        if parent is not None:
            parent.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.TemporaryDirectory(dir=parent)
    except OSError as error:
        raise RequestError(
            f"{parent or tempfile.gettempdir()}: found {error.strerror!r}, expected a folder to "
            "write to; set POCKETLM_CACHE to another"
        ) from error
    with temporary as name:
        yield Path(name)
