"""What is asked of a model: a prompt, how tokens are chosen, and what ends the text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ..export.errors import RequestError
from ..export.whole_number import brief, whole_number
from .banned_strings import BannedStrings
from .chunks import CHUNK_SIZE, Chunked, cuts
from .constraint import Grammar
from .context_policy import ERROR, SLIDE, STOP, check_policy, window
from .limits import MOST_LOGPROBS
from .sampling import SamplingOptions

GREEDY = SamplingOptions(temperature=0)


@dataclass(frozen=True)
class ChatPrompt:
    """What a model reads before it answers, and how to tell that it has answered."""

    token_ids: list[int]
    end_ids: frozenset[int] = frozenset()  # beside those the model has anyway
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Request:
    """A prompt and everything that decides what follows it; see ``Model.stream`` for the options.

    prompt_ids      token ids, at least one
    end_ids         tokens that end the text
    grammar         the form of the text; None for any
    banned          strings that it does not contain
    logprobs        None: none; 0: of each new token; N: of the N likeliest in its place, too
    max_seconds     after which it ends, at the next token; None: when it is finished
    context, keep   what happens when it outgrows the context, see ``context_policy``
    chunk_size      tokens of the prompt that are computed at once

    Raises RequestError, naming the option, for a value outside its range.
    """

    prompt_ids: Sequence[int]
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    max_tokens: int = 256
    end_ids: frozenset[int] = frozenset()
    grammar: Grammar | None = None
    banned: BannedStrings | None = None
    stop: Sequence[str] = ()
    logprobs: int | None = None
    max_seconds: float | None = None
    context: str = ERROR
    keep: int = 1
    chunk_size: int = CHUNK_SIZE

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompt_ids", tuple(self.prompt_ids))
        if not self.prompt_ids:
            raise RequestError("found no token ids, expected at least one")
        for name in ("max_tokens", "chunk_size"):
            value = getattr(self, name)
            number = whole_number(value)
            if number is None or number < 1:
                raise RequestError(
                    f"{name} is {brief(value)}, expected an integer from 1 up; give how many tokens"
                )
            object.__setattr__(self, name, number)  # NumPy's becomes Python's
        limit = self.max_seconds
        is_number = isinstance(limit, int | float | np.number) and not isinstance(limit, bool)
        if limit is not None and not (is_number and limit >= 0):
            raise RequestError(
                f"max_seconds is {brief(limit)}, expected a number of seconds from 0 up; leave it "
                "out for no limit"
            )
        check_policy(self.context, self.keep)
        object.__setattr__(self, "logprobs", checked_logprobs(self.logprobs))

    def seen(self, context_length: int, alike: int | None = None) -> Chunked:
        """The prompt as a model of that context sees it, and where it is to be cut.

        ``alike`` is ``Session.rotated_alike``, for whoever looks for what others have of it. Raises
        RequestError as ``window``; a prompt that is too long is another's to refuse.
        """
        ids = self.prompt_ids
        if self.context == SLIDE:
            newest = window(ids, self.keep, context_length)
            ids = ids if len(ids) <= context_length else newest
        return Chunked(ids, cuts(len(ids), self.chunk_size), alike=alike)

    def seeded(self, place: int) -> Request:
        """The same with another seed: ``place`` more than its own, if it has one."""
        seed = self.sampling.seed
        if seed is None:
            return self
        return replace(self, sampling=replace(self.sampling, seed=int(seed) + place))

    def stops_at_once(self, context_length: int) -> bool:
        """Whether the prompt is too long for that context, and the text to end because of that."""
        return self.context == STOP and len(self.prompt_ids) > context_length


def checked_logprobs(asked: object) -> int | None:
    """How many alternatives; None where no logprobs are asked for. True means 0, as False None."""
    if asked is None or isinstance(asked, bool | np.bool_):
        return 0 if asked else None
    number = whole_number(asked)
    if number is None or not 0 <= number <= MOST_LOGPROBS:
        raise RequestError(
            f"logprobs is {brief(asked)}, expected True, False or an integer from 0 to "
            f"{MOST_LOGPROBS}: how many alternatives to each token"
        )
    return number
