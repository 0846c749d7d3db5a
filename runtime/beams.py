"""Beam search: the continuations that are likeliest as a whole, rather than token by token.

    score = (log P of the new tokens, summed) / (number of new tokens) ** length_penalty

The ``width`` likeliest beginnings are continued together; one that ends is put aside. It is over
when no beginning can come to a better score than the worst of ``width`` that have ended. Source of
the score: Wu et al. 2016 (arXiv 1609.08144, section 7), in the form of Hugging Face's
``BeamHypotheses``. Letters: B beginnings, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..export.errors import RequestError
from ..export.whole_number import brief, whole_number
from .arena import Cache
from .cancellation import Cancellation
from .chunks import prefill
from .logprobs import logprobs
from .request import Request
from .session import Logits, Session
from .tokenizer import Tokenizer

MOST_BEAMS = 64


@dataclass(frozen=True)
class Beam:
    """A continuation.

    token_ids      the new tokens; an end token, if that ended it, included
    logprob        natural log of their probability
    score          by which beams are compared
    finish_reason  "eos", "length" or "context", as of any other text
    text           the tokens as text, without an end token
    """

    token_ids: tuple[int, ...]
    logprob: float
    score: float
    finish_reason: str
    text: str = ""


@dataclass(frozen=True)
class _Beginning:
    token_ids: tuple[int, ...]
    logprob: float
    cache: Cache


def check_beams(beams: object, length_penalty: Any) -> int:
    """How many ``beams``; RequestError for a number, or a penalty, out of range."""
    number = whole_number(beams)
    if number is None or not 1 <= number <= MOST_BEAMS:
        raise RequestError(
            f"beams is {brief(beams)}, expected an integer from 1 to {MOST_BEAMS}; give how many "
            "beginnings are to be followed"
        )
    is_number = isinstance(length_penalty, int | float | np.number)
    if isinstance(length_penalty, bool) or not is_number or not -10 <= length_penalty <= 10:
        raise RequestError(
            f"length_penalty is {brief(length_penalty)}, expected a number in [-10, 10]; leave it "
            "out for 1"
        )
    return number


def beam_search(
    session: Session,
    request: Request,
    width: int,
    length_penalty: float = 1.0,
    cancellation: Cancellation | None = None,
) -> list[Beam]:
    """The ``width`` best continuations that were met, the best first.

    Sampling options of ``request`` are not looked at. Raises what ``Session.step`` raises.
    """
    most = min(request.max_tokens, session.shape.context_length - len(request.prompt_ids) + 1)
    limit = "length" if most == request.max_tokens else "context"
    cache = session.new_caches()()  # whose rows are small
    prompt = prefill(
        session,
        request.prompt_ids,
        cache,
        chunk_size=request.chunk_size,
        cancellation=cancellation,
    )
    rows, beginnings = prompt[None], [_Beginning((), 0.0, cache)]
    ended: list[Beam] = []
    # So that ``width`` go on even where every beginning's likeliest tokens are those that end it.
    looked_at = (1 + max(1, len(request.end_ids))) * width
    for count in range(1, most + 1):
        going_on: list[tuple[_Beginning, int, float]] = []
        for beginning, token, logprob in _likeliest(rows, beginnings, looked_at):
            is_end = token in request.end_ids
            if is_end or count == most:
                ids = (*beginning.token_ids, token)
                score = logprob / count**length_penalty
                ended.append(Beam(ids, logprob, score, "eos" if is_end else limit))
            elif len(going_on) < width:
                going_on.append((beginning, token, logprob))
        ended = sorted(ended, key=lambda beam: -beam.score)[:width]
        beginnings = _continued(going_on)
        if not beginnings or _is_over(ended, beginnings, width, count, most, length_penalty):
            break
        feeds = [(one.cache, one.token_ids[-1:]) for one in beginnings]
        rows = session.step_together(feeds, cancellation)
    return ended


def with_text(beam: Beam, request: Request, tokenizer: Tokenizer) -> Beam:
    """``beam``, which was found for ``request``, with its text."""
    detokenizer = tokenizer.detokenizer(after=request.prompt_ids)
    words = [token for token in beam.token_ids if token not in request.end_ids]
    return replace(beam, text="".join(map(detokenizer.add, words)) + detokenizer.finish())


def _likeliest(
    rows: Logits, beginnings: list[_Beginning], count: int
) -> list[tuple[_Beginning, int, float]]:
    """The beginnings with a token more, (beginning, token, log P), from the likeliest on."""
    size = rows.shape[1]
    every = np.broadcast_to(np.arange(size), rows.shape)
    logs = logprobs(rows, every) + np.array([[one.logprob] for one in beginnings])
    flat = logs.reshape(-1)
    count = min(count, flat.size)
    places = np.argpartition(-flat, count - 1)[:count]
    places = places[np.lexsort((places, -flat[places]))]
    return [(beginnings[place // size], int(place % size), float(flat[place])) for place in places]


def _continued(chosen: list[tuple[_Beginning, int, float]]) -> list[_Beginning]:
    """Each with a cache of its own: the first of several takes its beginning's."""
    taken: set[int] = set()
    found = []
    for beginning, token, logprob in chosen:
        cache = beginning.cache.copy() if id(beginning) in taken else beginning.cache
        taken.add(id(beginning))
        found.append(_Beginning((*beginning.token_ids, token), logprob, cache))
    return found


def _is_over(
    ended: list[Beam],
    beginnings: list[_Beginning],
    width: int,
    count: int,
    most: int,
    length_penalty: float,
) -> bool:
    """Whether none of the beginnings can come to a better score than what has ended."""
    if len(ended) < width:
        return False
    best = max(one.logprob for one in beginnings)  # which tokens to come only lower
    return bool(max(best / n**length_penalty for n in (count + 1, most)) <= ended[-1].score)
