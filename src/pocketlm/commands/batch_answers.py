"""The loop of a batch: lines become requests as others end, and answers wait for their turn."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

from pocketlm.commands.batch_line import Asked, answer, as_chat, asked_by, failure
from pocketlm.commands.jsonl import Line
from pocketlm.export.errors import RequestError
from pocketlm.runtime.model import Model
from pocketlm.runtime.request import Request
from pocketlm.runtime.sampling import SamplingOptions
from pocketlm.runtime.text import Result

# What waits for the answer to a line before it. When there is more, no line is begun until that
# answer is there: it bounds memory, and what is lost when the process is killed.
MOST_HELD = 1000
MOST_HELD_BYTES = 64_000_000


@dataclass(frozen=True)
class Terms:
    """What a command line says of all lines.

    options   of ``Model.stream``, for lines that do not say
    seed      makes those of the lines, together with their numbers
    chat      whether a prompt is a message, after ``system`` if that is given
    """

    options: Mapping[str, Any]
    seed: int = 0
    chat: bool = False
    system: str | None = None

    def __post_init__(self) -> None:
        SamplingOptions(seed=self.seed)  # RequestError for what is none

    def asked_by(self, line: Line) -> Asked:
        """What ``line`` asks for, with a seed; raises RequestError, and asks no model."""
        asked = asked_by(line)
        if self.chat:
            asked = as_chat(asked, self.system)
        return asked.seeded(line_seed(self.seed, line.number))


def line_seed(seed: int, number: int) -> int:
    """The seed of a line that has none, by its number: 32 bits, the same whenever it runs."""
    return int.from_bytes(hashlib.sha256(f"{seed} {number}".encode()).digest()[:4])


class Answers:
    """The answers to lines, made by one model, in the order of the lines.

    num_lines    answered, whether or not it was their turn yet
    num_tokens   in them
    num_errors   lines that an error was written for
    exit_code    of the first request that failed while it ran, else 0
    """

    def __init__(
        self,
        model: Model,
        terms: Terms,
        digest: Callable[[Line], str],
        rows: int,
        skip_bad: bool = False,
        on_answer: Callable[[Answers], object] = lambda answers: None,
    ) -> None:
        """``digest`` names an answer; with ``skip_bad`` a line that cannot be gets an error."""
        self.num_lines = self.num_tokens = self.num_errors = self.exit_code = 0
        self._started = time.perf_counter()
        self._model = model
        self._terms = terms
        self._digest = digest
        self._rows = rows
        self._skip_bad = skip_bad
        self._on_answer = on_answer
        self._coming: Iterator[tuple[int, Line]] = iter(())
        self._running: dict[int, tuple[int, Line, Asked]] = {}
        self._held: dict[int, bytes] = {}
        self._held_bytes = 0

    @property
    def seconds(self) -> float:
        """Since it was made."""
        return time.perf_counter() - self._started

    @property
    def rate(self) -> float:
        """New tokens per second."""
        return self.num_tokens / self.seconds

    def to(self, lines: Iterable[Line]) -> Iterator[bytes]:
        """Yields them, as soon as it is the turn of each.

        Raises RequestError for a line that cannot be, unless that is skipped, and what
        ``generate_many`` raises.
        """
        self._coming = enumerate(lines)
        turn = 0
        while (first := next(self._coming, None)) is not None:
            requests = self._requests(chain([first], self._coming))
            for result in self._model.generate_many(requests, rows=self._rows):
                place, line, asked = self._running.pop(result.index)
                self._hold(place, self._answer(line, asked, result))
                while turn in self._held:
                    yield self._release(turn)
                    turn += 1
            while turn in self._held:  # lines that were never requests
                yield self._release(turn)
                turn += 1

    def _requests(self, lines: Iterable[tuple[int, Line]]) -> Iterator[Request]:
        """Of as many lines as there is room for to wait."""
        count = 0
        for place, line in lines:
            try:
                asked = self._terms.asked_by(line)
                request = asked.request(self._model, self._terms.options)
            except RequestError as error:
                if not self._skip_bad:
                    raise RequestError(f"line {line.number}: {error}") from error
                self._hold(place, self._failure(line, error))
            else:
                self._running[count] = (place, line, asked)
                count += 1
                yield request
            if len(self._held) >= MOST_HELD or self._held_bytes >= MOST_HELD_BYTES:
                return

    def _answer(self, line: Line, asked: Asked, result: Result) -> bytes:
        self.num_tokens += result.timings.new_tokens
        if result.error is not None:
            self.exit_code = self.exit_code or getattr(result.error, "exit_code", 1)
            return self._failure(line, result.error)
        return answer(line, asked, result, self._model.tokenizer, self._digest(line))

    def _failure(self, line: Line, error: Exception) -> bytes:
        self.num_errors += 1
        return failure(line, str(error), self._digest(line))

    def _hold(self, place: int, data: bytes) -> None:
        self._held[place] = data
        self._held_bytes += len(data)
        self.num_lines += 1
        self._on_answer(self)

    def _release(self, place: int) -> bytes:
        data = self._held.pop(place)
        self._held_bytes -= len(data)
        return data
