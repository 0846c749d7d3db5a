"""Running totals of one model over all windows: what ``measure_quality`` reports of it."""

from __future__ import annotations

import heapq
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...runtime.tokenizer import Tokenizer
from .clustered import Quantiles, Ratio
from .divergence import Rows
from .text_windows import Window

NUM_PARTS = 100  # of the text, at most, for which KL and loss are told
NUM_EXAMPLES = 8
LARGEST_LOSS = 700.0  # nats; exp of 710 is more than a float holds
EXAMPLE_CONTEXT = 40  # tokens before the place where two models part


class Totals:
    """What one model loses, alone and against the reference."""

    def __init__(self, name: str, tokenizer: Tokenizer) -> None:
        self.name = name
        self.loss, self._per_byte, self._per_word = Ratio(), Ratio(), Ratio()
        self.against = Against(tokenizer)
        self.along = Along()

    def add(self, window: Window, rows: Rows, reference: Rows, more: bool) -> None:
        """Adds what the model says in a window, beside what the reference does.

        ``more``: the window goes on with the cluster of the one before.
        """
        loss = float(rows.loss.sum())
        self.loss.add(loss, window.num_scored, more)
        self._per_byte.add(loss, window.num_bytes, more)
        self._per_word.add(loss, window.num_words, more)
        self.along.add(rows.kl, rows.loss)
        if rows is not reference:
            self.against.add(window, rows, reference, self.num_tokens - window.num_scored, more)

    @property
    def num_tokens(self) -> int:
        return int(self.loss.weights)

    @property
    def num_bytes(self) -> int:
        return int(self._per_byte.weights)

    @property
    def num_words(self) -> int:
        return int(self._per_word.weights)

    def running(self, is_reference: bool) -> str:
        """The value to show while it runs: KL, or the perplexity of a model alone."""
        if is_reference:
            return f"perplexity {math.exp(min(self.loss.mean, LARGEST_LOSS)):.3f}"
        return f"KL({self.name}) {self.against.kl.mean:.5f}"

    def result(self, is_reference: bool) -> dict[str, Any]:
        """As it stands in results."""
        return {
            "model": self.name,
            "perplexity": {
                "token": _perplexity(self.loss),
                "byte": _perplexity(self._per_byte),
                "word": _perplexity(self._per_word),
            },
            "loss": self.loss.result(),
            "bits_per_byte": self._per_byte.mean / math.log(2) if self.num_bytes else None,
            "against": None if is_reference else self.against.result(),
            "along": self.along.result(is_reference),
            "examples": [] if is_reference else self.against.examples.result(self.num_tokens),
        }


def _perplexity(loss: Ratio) -> dict[str, Any]:
    """exp of a mean; its standard error is the mean's times the derivative, which is the same.

    Unknown without a whole word, and where a text is so much of one that no float holds it.
    """
    error = loss.standard_error
    if not loss.weights or loss.mean > LARGEST_LOSS:
        return {"value": None, "standard_error": None}
    value = math.exp(loss.mean)
    return {"value": value, "standard_error": None if error is None else value * error}


class Against:
    """How far a model diverges from the reference."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.kl, self._top1, self._top5 = Ratio(), Ratio(), Ratio()
        self._delta, self._absolute = Ratio(), Ratio()
        self._kls, self._absolutes = Quantiles(), Quantiles()
        self._largest = 0.0
        self.examples = Examples(tokenizer)

    def add(
        self, window: Window, rows: Rows, reference: Rows, before: int, more: bool = False
    ) -> None:
        """Adds a window that comes after ``before`` scored tokens."""
        count = window.num_scored
        delta = rows.probability - reference.probability
        shared = (rows.top[:, :, None] == reference.top[:, None, :]).any(axis=-1).mean(axis=-1)
        self.kl.add(float(rows.kl.sum()), count, more)
        self._top1.add(float((rows.top[:, 0] == reference.top[:, 0]).sum()), count, more)
        self._top5.add(float(shared.sum()), count, more)
        self._delta.add(float(delta.sum()), count, more)
        self._absolute.add(float(np.abs(delta).sum()), count, more)
        self._kls.add(rows.kl, more)
        self._absolutes.add(np.abs(delta), more)
        self._largest = max(self._largest, float(rows.kl.max()))
        self.examples.add(window, rows, reference, before)

    def result(self) -> dict[str, Any]:
        """As it stands in results."""
        return {
            "kl": {
                "mean": self.kl.result(),
                "median": self._kls.result(0.5),
                "p99": self._kls.result(0.99),
                "max": self._largest,
            },
            "top1_agreement": self._top1.result(),
            "top5_overlap": self._top5.result(),
            "delta_p": {
                "mean": self._delta.result(),
                "mean_absolute": self._absolute.result(),
                "p99_absolute": self._absolutes.result(0.99),
            },
        }


class Along:
    """Means of KL and loss along the text, in at most NUM_PARTS parts of equal length.

    How long the text is turns out at its end: whenever the parts run out, every two become one.
    """

    def __init__(self) -> None:
        self._length = 1  # tokens of a part
        self._tokens = 0
        self._sums = np.zeros((2, NUM_PARTS))

    def add(self, kl: NDArray[np.float64], loss: NDArray[np.float64]) -> None:
        """Adds the tokens (S,) of a window."""
        places = self._tokens + np.arange(len(kl))
        self._tokens += len(kl)
        while self._tokens > self._length * NUM_PARTS:
            halves = self._sums.reshape(2, NUM_PARTS // 2, 2).sum(axis=-1)
            self._sums = np.pad(halves, ((0, 0), (0, NUM_PARTS // 2)))
            self._length *= 2
        for sums, values in zip(self._sums, (kl, loss), strict=True):
            sums += np.bincount(places // self._length, values, minlength=NUM_PARTS)

    def result(self, is_reference: bool) -> list[dict[str, Any]]:
        """The parts, each with the place of its middle as a share of the text."""
        parts = []
        for first in range(0, self._tokens, self._length):
            count = min(self._length, self._tokens - first)
            kl, loss = self._sums[:, first // self._length] / count
            parts.append(
                {
                    "position": (first + count / 2) / self._tokens,
                    "kl": None if is_reference else float(kl),
                    "loss": float(loss),
                }
            )
        return parts


class Examples:
    """The places with the largest KL among those where the likeliest tokens differ."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._found: list[tuple[float, int, dict[str, Any]]] = []  # a heap: (kl, -place, example)

    def add(self, window: Window, rows: Rows, reference: Rows, before: int) -> None:
        """Looks at a window that comes after ``before`` scored tokens."""
        parted = np.flatnonzero(rows.top[:, 0] != reference.top[:, 0])
        largest = parted[np.argsort(-rows.kl[parted], kind="stable")][:NUM_EXAMPLES]
        for row in largest.tolist():
            kl = float(rows.kl[row])
            if len(self._found) == NUM_EXAMPLES and kl <= self._found[0][0]:
                break
            example = {
                "context": self._context(window, row),
                "true": self._text(window.targets[row]),
                "reference": self._likeliest(reference, row),
                "model": self._likeliest(rows, row),
                "kl": kl,
            }
            heapq.heappush(self._found, (kl, -(before + row), example))
            if len(self._found) > NUM_EXAMPLES:
                heapq.heappop(self._found)

    def result(self, num_tokens: int) -> list[dict[str, Any]]:
        """The largest KL first; ``position`` is the share of the text before."""
        return [
            example | {"position": -place / num_tokens}
            for _, place, example in sorted(self._found, key=lambda found: found[:2], reverse=True)
        ]

    def _context(self, window: Window, row: int) -> str:
        end = len(window.ids) - window.num_scored + row
        return self._tokenizer.decode(window.ids[max(0, end - EXAMPLE_CONTEXT) : end].tolist())

    def _likeliest(self, rows: Rows, row: int) -> list[list[Any]]:
        ids, probabilities = rows.top[row].tolist(), rows.top_probability[row].tolist()
        return [[self._text(i), p] for i, p in zip(ids, probabilities, strict=True)]

    def _text(self, token_id: int) -> str:
        """A token alone; special ones too, since the text may have them."""
        return self._tokenizer.token_text(int(token_id))
