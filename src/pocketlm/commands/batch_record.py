"""The output of a batch, which is its own record: what is answered stays, and only the rest runs.

Every answer begins with a digest in three parts: of the model, of the options, of the line that it
answers. The n-th answer belongs to the n-th line of the input that is not blank. So an output is
gone on with where the digests are those of the same model, options and lines; lines that have no
answer yet may be changed, and others added. An answer without its newline was cut off when the
process died, and is made anew. Written is without a buffer: what is answered is there.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import click

from pocketlm.commands.batch_answers import Terms
from pocketlm.commands.batch_line import heads
from pocketlm.commands.jsonl import JsonLines, Line
from pocketlm.export.errors import RequestError, StorageError
from pocketlm.export.lock import acquire
from pocketlm.runtime.model import Model
from pocketlm.runtime.prefill_choice import NONE

DIGITS = 12  # of each part of a digest
OTHERS = ("an answer by another model", "an answer with other options", "another answer")
ANSWER = re.compile(rb'\{"(?:digest|id)": "(?:batch_req_)?([0-9a-f-]+)", ')
LONGEST_HEAD = 256  # bytes; with more than a digest in it
ANEW = "name another output, or remove this one to begin anew"


class Identity:
    """What answers are made of beside the line: a model, and options."""

    def __init__(self, model: Model, terms: Terms) -> None:
        """Where it runs, and with which of its graphs, count as options."""
        files = {name: entry.sha256 for name, entry in model.folder.files.items()}
        session = model.session
        place = {"kv": session.kv, "provider": session.place.name}
        if session.prefill != NONE:  # else as before there was another
            place["prefill"] = session.prefill
        self._digests = [_digest(_json(files)), _digest(_json({**asdict(terms), **place}))]

    def digest(self, line: Line) -> str:
        """That of an answer to ``line``."""
        # With its number, which its seed is made of.
        return "-".join([*self._digests, _digest(b"%d %b" % (line.number, line.data))])


@dataclass(frozen=True)
class _Found:
    """The beginning of a line of the output, and whether the line has its end."""

    head: bytes
    num_bytes: int
    is_whole: bool

    def answers(self, digest: str) -> bool:
        """Whether it is an answer with that digest, or the beginning of one."""
        return any(
            self.head.startswith(head) or (not self.is_whole and head.startswith(self.head))
            for head in heads(digest)
        )

    def difference(self, digest: str) -> str:
        """What is other in it than in an answer with that digest."""
        found = ANSWER.match(self.head)
        given = found[1].decode().split("-") if found else []
        for what, first, second in zip(OTHERS, given, digest.split("-"), strict=False):
            if first != second:
                return what
        return "something else"


class Output(Protocol):
    """Where answers go."""

    def resume(self, lines: JsonLines, identity: Identity) -> int:
        """How many of ``lines`` are answered already."""

    def write(self, answer: bytes) -> None:
        """Adds an answer, which is there when this returns."""


class StandardOutput:
    """Answers on stdout, of which none is there before."""

    def resume(self, lines: JsonLines, identity: Identity) -> int:
        """None."""
        return 0

    def write(self, answer: bytes) -> None:
        """Raises OSError where stdout cannot be written."""
        click.echo(answer.decode("ascii"), nl=False)


class Record:
    """A file of answers, and those that it has."""

    def __init__(self, file: io.FileIO, path: Path) -> None:
        """``file`` is open for reading and writing, without a buffer."""
        self._file = file
        self._path = path

    def resume(self, lines: JsonLines, identity: Identity) -> int:
        """How many are answered; cuts off what was half-written.

        Raises RequestError for a file with anything else than answers to the first of ``lines`` by
        ``identity``; that stays as it is.
        """
        asked = iter(lines)
        count = kept = 0
        for found in self._found():
            line = next(asked, None)
            if line is None:
                raise RequestError(
                    f"{self._path}, line {count + 1}: found more answers than there are lines in "
                    f"{lines.name}, expected at most as many; give the input that it was made of, "
                    f"or {ANEW}"
                )
            digest = identity.digest(line)
            if not found.answers(digest):
                raise RequestError(
                    f"{self._path}, line {count + 1}: found {found.difference(digest)} than that "
                    f"of {lines.place(line)}, expected its answer; {ANEW}"
                )
            count += found.is_whole
            kept += found.num_bytes if found.is_whole else 0
        self._file.truncate(kept)
        self._file.seek(kept)
        return count

    def _found(self) -> Iterator[_Found]:
        self._file.seek(0)
        reader = io.BufferedReader(self._file)
        try:
            while head := reader.readline(LONGEST_HEAD):
                length, last = len(head), head
                while not last.endswith(b"\n") and (last := reader.readline(1 << 20)):
                    length += len(last)
                yield _Found(head, length, last.endswith(b"\n"))
        finally:
            reader.detach()

    def write(self, answer: bytes) -> None:
        """Raises StorageError where there is no room for it; a part of it is cut off later."""
        rest = memoryview(answer)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as cause:
            raise StorageError(
                f"{self._path}: cannot be written ({cause.strerror}), expected room for "
                f"{len(answer):,} bytes; free some space and run it again: it goes on from here"
            ) from cause


@contextmanager
def open_output(path: Path, lines: JsonLines, source: Path) -> Iterator[Output]:
    """The output at ``path``, stdout for "-"; not the file ``source`` that the lines come from.

    Held by one process at a time. Raises RequestError for what is no file, is the input, or is held
    by another; OSError where it cannot be opened. A file that gets no answer is not left there.
    """
    if path == Path("-"):
        yield StandardOutput()
        return
    if path.exists() and source.exists() and os.path.samefile(path, source):
        raise RequestError(
            f"{path}: found the input, expected another file for the output; choose another name"
        )
    is_new = not os.path.lexists(path)
    handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
    with io.FileIO(handle, "r+b") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise RequestError(
                f"{path}: found no regular file, expected one or none; for stdout write -o -"
            )
        if not acquire(handle, wait=False):
            raise RequestError(
                f"{path}: found another process that writes it, expected none; wait for it, or "
                "choose another name"
            )
        try:
            yield Record(file, path)
        finally:
            if is_new and not os.fstat(handle).st_size:
                with contextlib.suppress(OSError):
                    path.unlink()


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:DIGITS]


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True).encode()
