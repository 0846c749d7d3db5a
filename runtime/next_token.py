"""What may come next: logits after a prompt become the distribution, before and after the options.

Letters: V vocabulary, N tokens told apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .cancellation import Cancellation
from .decode import begin
from .logprobs import likeliest, logprobs
from .prefix import Prefixes
from .request import Request
from .sampling import make_sampler
from .session import Logits, Session


@dataclass(frozen=True, eq=False)
class NextTokens:
    """The likeliest of the tokens that may come next, and all others together.

    token_ids       (N,): the likeliest first; of equally likely ones that with the smallest id
    probabilities   (N,): the model's own, before any option
    left            (N,): what the options make of it, 0 for a token that they cut off
    num_others      tokens that are not among these
    others          probability of theirs, the model's own
    others_left     what the options make of that
    num_left        tokens, of all, that can be drawn
    """

    token_ids: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    left: NDArray[np.float64]
    num_others: int
    others: float
    others_left: float
    num_left: int


def next_logits(
    session: Session,
    request: Request,
    prefixes: Prefixes | None = None,
    cancellation: Cancellation | None = None,
) -> Logits:
    """(V,) after the prompt of ``request``; of what ``prefixes`` have nothing is computed again.

    Raises RequestError for a prompt that does not fit, Cancelled when ``cancellation`` was used.
    """
    sequence = begin(session, request, prefixes=prefixes)
    while sequence.prompt_logits is None:
        logits = session.step(sequence.feed(), sequence.cache, cancellation)
        if not sequence.in_prompt:
            sequence.prompt_logits = logits
    if prefixes is not None:
        prefixes.keep(sequence)
    return sequence.prompt_logits


def next_tokens(
    logits: Logits, request: Request, count: int, num_prompt: int | None = None
) -> NextTokens:
    """The ``count`` likeliest by ``logits``, and what the options of ``request`` leave of them.

    What is left is what its sampler would draw from. Of its prompt the first ``num_prompt`` tokens
    count as one, and the others as generated, of which penalties speak. Raises RequestError where
    the options leave nothing, NumericsError for logits that are not finite.
    """
    ids: Sequence[int] = request.prompt_ids
    given = len(ids) if num_prompt is None else num_prompt
    sampler = make_sampler(request.sampling, given, request.end_ids, banned=request.banned)
    drawn, weights = sampler.distribution(logits, ids)
    left = np.zeros(logits.size)
    left[drawn] = weights / weights.sum()
    shown = likeliest(logits, count)
    own = np.exp(logprobs(logits[None], shown[None])[0])
    return NextTokens(
        shown,
        own,
        left[shown],
        logits.size - shown.size,
        max(0.0, 1.0 - float(own.sum())),
        float(np.delete(left, shown).sum()),
        int(np.count_nonzero(left)),
    )
