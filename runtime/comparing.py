"""What models make of one text: token ids in, of each token what every model says of it out.

    KL(p‖q) = Σ p·(log p − log q)        over the whole vocabulary, in nats

p is what the first model expects at a place, q what the second does: how much is lost there by
taking the second for the first. Letters: M models, S tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .cancellation import Cancellation, Cancelled
from .logprobs import BLOCK_ROWS, logprobs
from .scoring import Scorer
from .session import Logits

LEAST = -1e4  # for a token that cannot come: there is no infinity less infinity


@dataclass(frozen=True, eq=False)
class Comparison:
    """Of the tokens of a text after the first.

    logprobs    (M, S): natural log of each token's probability
    best        (M, S): the likeliest token in its place
    kl          (S,): of the second model from the first, in nats; None with one model
    """

    logprobs: NDArray[np.float64]
    best: NDArray[np.int64]
    kl: NDArray[np.float64] | None


def compare(
    scorers: Sequence[Scorer],
    token_ids: Sequence[int],
    cancellation: Cancellation | None = None,
) -> Comparison:
    """What one model, or two of the same tokens, say of ``token_ids``, at least two of them.

    Raises RequestError for more tokens than a model takes, NumericsError for logits that are not
    finite, Cancelled, between two chunks, when ``cancellation`` was used.
    """
    logs, best, kl = [], [], []
    parts = [scorer.rows(token_ids[:1], token_ids[1:]) for scorer in scorers]
    for models in zip(*parts, strict=True):
        if cancellation is not None and cancellation.cancelled:
            raise Cancelled("the comparison was cancelled")
        targets = models[0][1]
        logs.append(np.stack([logprobs(rows, targets[:, None])[:, 0] for rows, _ in models]))
        best.append(np.stack([rows.argmax(axis=-1) for rows, _ in models]))
        if len(models) == 2:
            kl.append(divergence(models[0][0], models[1][0]))
    return Comparison(
        np.concatenate(logs, axis=1),
        np.concatenate(best, axis=1),
        np.concatenate(kl) if kl else None,
    )


def divergence(first: Logits, second: Logits) -> NDArray[np.float64]:
    """KL (S,), in nats, of the second rows of logits (S, V) from the first; not below 0."""
    found = np.empty(len(first))
    for start in range(0, len(first), BLOCK_ROWS):
        rows = slice(start, start + BLOCK_ROWS)
        p, q = _log_softmax(first[rows]), _log_softmax(second[rows])
        found[rows] = (np.exp(p) * (p - q)).sum(axis=-1)
    return np.maximum(found, 0.0)


def _log_softmax(rows: Logits) -> NDArray[np.float64]:
    shifted = rows.astype(np.float64) - rows.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return np.maximum(shifted, LEAST)
