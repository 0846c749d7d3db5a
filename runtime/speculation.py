"""Tokens that are guessed, and then computed several at once: how many pays, and where from.

A step of several tokens of one sequence costs little more than one, since it reads the weights
once. So tokens are guessed, fed together, and kept as far as the sampler, asked at each place in
turn, chooses just these: what comes out is what would have come out anyway, at any temperature.

    expected tokens of a step with k guesses, each right with probability a:  1 + a + … + a**k
    chosen k: the one with most tokens per second, by what steps of so many tokens took so far

Sources: Leviathan et al. 2022 (arXiv 2211.17192) for verifying guesses at once; Saxena 2023 (prompt
lookup decoding) for guesses from the text itself.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

from .chunks import prefill
from .request import Request
from .sampling import SamplingOptions, make_sampler
from .sequence import Sequence
from .session import Session
from .shared_beginning import shared_beginning

MOST_GUESSES = 15
LONGEST_MATCH = 4  # tokens by which a place of the text is recognised; 2 at least
PROBE = 32  # tokens after which guessing is tried again where it does not pay; then twice as many
UNTRIED = 0.1  # of a plain step: what a token more is taken to cost before it was tried
WEIGHT = 0.2  # of the latest observation in a running mean


class Drafter(Protocol):
    """Guesses what comes next in a sequence, which is the same at every call."""

    def outlook(self, sequence: Sequence, most: int) -> tuple[int, int]:
        """How many guesses it has, ``most`` at most, and how sure it is: a small whole number."""

    def guess(self, sequence: Sequence, count: int) -> list[int]:
        """At most ``count`` tokens that may follow."""


class PromptLookup:
    """Guesses that the text goes on as it did when it last said the same few tokens."""

    def __init__(self) -> None:
        self._followed: dict[tuple[int, ...], int] = {}  # last tokens -> place of what came next
        self._num_seen = 0
        self._place = 0  # in the text, from which it may go on

    def outlook(self, sequence: Sequence, most: int) -> tuple[int, int]:
        """Of what followed the longest match of the last tokens; its length says how sure it is."""
        token_ids = sequence.token_ids
        for place in range(max(1, self._num_seen), len(token_ids)):
            for count in range(2, min(LONGEST_MATCH, place) + 1):
                self._followed[tuple(token_ids[place - count : place])] = place
        self._num_seen = len(token_ids)
        for count in range(min(LONGEST_MATCH, len(token_ids)), 1, -1):
            found = self._followed.get(tuple(token_ids[-count:]))
            if found is not None:
                self._place = found
                return min(most, len(token_ids) - found), count
        return 0, 0

    def guess(self, sequence: Sequence, count: int) -> list[int]:
        """What followed there."""
        return sequence.token_ids[self._place : self._place + count]


class DraftModel:
    """Guesses what a smaller model of the same tokens says.

    Where tokens are drawn, it draws with the number that the sequence will draw with: two
    distributions that are alike then mostly give the same token.
    """

    def __init__(self, session: Session, request: Request) -> None:
        self._session = session
        self._cache = session.new_cache()
        self._fed: list[int] = []  # what the cache holds
        size = session.shape.vocab_size
        end_ids = frozenset(token for token in request.end_ids if token < size)
        self._sampler = make_sampler(
            _within(request.sampling, size), len(request.prompt_ids), end_ids
        )

    def outlook(self, sequence: Sequence, most: int) -> tuple[int, int]:
        """As many as there is room for in its own context; none after a token it does not have."""
        if max(sequence.token_ids) >= self._session.shape.vocab_size:
            return 0, 0
        room = self._session.shape.context_length - len(sequence.token_ids)
        return max(0, min(most, room)), LONGEST_MATCH + 1

    def guess(self, sequence: Sequence, count: int) -> list[int]:
        """What its own loop generates."""
        token_ids = list(sequence.token_ids)
        held = min(shared_beginning(self._fed, token_ids), len(token_ids) - 1)
        self._cache.truncate(held)
        logits = prefill(self._session, token_ids[held:], self._cache)
        drawn = sequence.sampler.generator.bit_generator.state
        self._sampler.generator.bit_generator.state = drawn
        guesses = [self._sampler(logits, token_ids)]
        while len(guesses) < count:
            logits = self._session.step(guesses[-1:], self._cache)
            guesses.append(self._sampler(logits, [*token_ids, *guesses]))
        self._fed = [*token_ids, *guesses[:-1]]
        return guesses


def _within(options: SamplingOptions, size: int) -> SamplingOptions:
    """``options`` without the tokens that a vocabulary of ``size`` does not have."""
    biases, banned = options.logit_bias or {}, options.banned_tokens or ()
    return replace(
        options,
        logit_bias={token: bias for token, bias in biases.items() if token < size} or None,
        banned_tokens=[token for token in banned if token < size] or None,
    )


class Pace:
    """How many guesses to feed: by how often they were right, and by what steps took."""

    def __init__(self) -> None:
        self._right: dict[int, float] = {}  # how sure -> share of guesses that were right
        self._seconds: dict[int, float] = {}  # tokens of a step -> what it takes
        self._since_tried = 0
        self._patience = PROBE

    def num_guesses(self, sure: int, available: int) -> int:
        """The number of guesses that is expected to give most tokens per second, maybe 0."""
        if not available or 1 not in self._seconds:  # what a plain step takes is to be known
            return 0
        share = self._right.get(sure, _hoped_for(sure))
        expected, best, best_rate = 0.0, 0, 0.0
        most = min(available, 2 * max(self._seconds))  # a step much longer than any could cost much
        for guesses in range(most + 1):
            expected += share**guesses
            rate = expected / self._cost(guesses + 1)
            if rate > best_rate:
                best, best_rate = guesses, rate
        self._since_tried = 0 if best else self._since_tried + 1
        if not best and self._since_tried >= self._patience:
            self._since_tried = 0
            self._patience *= 2
            return min(2, available)
        return best

    def _cost(self, count: int) -> float:
        """Seconds of a step of ``count`` tokens: between those that were measured, on a line."""
        below = max(n for n in self._seconds if n <= count)
        above = min((n for n in self._seconds if n >= count), default=None)
        if above is None:  # more than was ever tried: hopefully cheap
            return self._seconds[below] + (count - below) * UNTRIED * self._seconds[1]
        share = (count - below) / (above - below) if above > below else 0.0
        return (1 - share) * self._seconds[below] + share * self._seconds[above]

    def took(self, count: int, seconds: float) -> None:
        """A step of ``count`` tokens took so long."""
        self._seconds[count] = _running_mean(self._seconds.get(count), seconds)

    def came_out(self, sure: int, guesses: int, right: int) -> None:
        """Of so many guesses the first ``right`` were right."""
        if right:
            self._patience = PROBE
        looked_at = min(right + 1, guesses)  # those after the first wrong one say nothing
        for place in range(looked_at):
            self._right[sure] = _running_mean(self._right.get(sure), float(place < right))


def _hoped_for(sure: int) -> float:
    """The share of right guesses before any was looked at: of a match of two tokens none."""
    return 0.34 * (min(sure, LONGEST_MATCH) - 2)


def _running_mean(mean: float | None, value: float) -> float:
    return value if mean is None else mean + WEIGHT * (value - mean)
