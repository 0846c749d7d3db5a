"""What is timed: the tests of ``speed``, and rows that decode together; what each asks a peer for.

pp512 is one call for one token after 512. tg128 is as many forward passes of one token each, and
tg128 @ d900 the same after 900. 16 x tg64 decodes as many rows at once, each from a prompt of one
token; its rate is that of all rows together. "first token" starts a process, which opens the model
and answers a prompt of 8 tokens with one; its rate is one over the seconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..speed.measure import SpeedGrid, SpeedTest

WARMUP_TOKENS = 8  # of a generation, in the round that is not kept
FIRST_TOKEN = "first token"
FIRST_PROMPT = 8  # tokens, as in ``speed.worker``
MANY_TOKENS = 64  # of each row


@dataclass(frozen=True)
class ManyRows:
    """So many rows that are decoded together."""

    rows: int
    generation: int = MANY_TOKENS
    needs = "generate_many"

    @property
    def name(self) -> str:
        return f"{self.rows} x tg{self.generation}"

    @property
    def tokens(self) -> int:
        return self.rows * self.generation


Trial = SpeedTest | ManyRows


@dataclass(frozen=True)
class Call:
    """A request whose seconds count with this sign."""

    sign: int
    do: str
    arguments: dict[str, Any]


def trials(grid: SpeedGrid, context: int, rows: int) -> list[Trial]:
    """Those of ``grid``, a prompt without a depth, which only a generation has, and ``rows``."""
    tests = grid.tests(context)
    found = [test if test.generation else replace(test, depth=0) for test in tests]
    many = [ManyRows(rows, min(MANY_TOKENS, context - 1))] if rows else []
    return [*dict.fromkeys(found), *many]


def token_ids(vocab_size: int, count: int, number: int) -> list[int]:
    """The random prompt of a round, the same for all; a new one each round: none is cached."""
    ids: list[int] = np.random.default_rng(number).integers(0, vocab_size, count).tolist()
    return ids


def calls(trial: Trial, vocab_size: int, number: int) -> Iterator[Call]:
    """What to ask for in that round; round 0 warms up.

    A runtime's one call for n tokens is the prompt's pass, which yields the first, and n - 1 more.
    After a prompt of one token that is n passes of one token each, all that tg is. Deeper, the
    prompt's own seconds are taken off again.
    """
    if isinstance(trial, SpeedTest) and not trial.generation:
        yield _generate(1, token_ids(vocab_size, trial.prompt, number), 1)
        return
    count = trial.generation if number > 0 else min(WARMUP_TOKENS, trial.generation)
    if isinstance(trial, ManyRows):
        prompts = [[token] for token in token_ids(vocab_size, trial.rows, number)]
        yield Call(1, "generate_many", {"prompts": prompts, "count": count})
    elif trial.depth == 0:
        yield _generate(1, token_ids(vocab_size, 1, number), count)
    else:
        ids = token_ids(vocab_size, trial.depth, number)
        yield _generate(1, ids, count + 1)
        yield _generate(-1, ids, 1)


def _generate(sign: int, ids: list[int], count: int) -> Call:
    return Call(sign, "generate", {"ids": ids, "count": count})


def own_bench(trial: Trial) -> dict[str, int] | None:
    """What a peer's own benchmark is asked for, None for what it has no test of."""
    if isinstance(trial, ManyRows) or trial.depth:
        return None
    return {"prompt": trial.prompt, "generation": trial.generation}
