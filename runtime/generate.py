"""Token ids in, token ids out: prefill the prompt in chunks, then decode one token at a time."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .cache import Cache
from .cancellation import Cancellation
from .reuse import ReusableCache
from .sampling import Sampler, logprob
from .session import Logits, Session

# Tokens per prefill run: long enough that the weights' traffic is shared by many rows, short
# enough that the S × T work of a chunk stays small and a cancellation is prompt.
CHUNK_SIZE = 256


@dataclass(frozen=True)
class Step:
    """One generated token."""

    token: int
    logprob: float | None  # natural log, before any sampling option; None unless asked for
    seconds: float  # spent on it, the prompt included for the first


def prefill(
    session: Session,
    prompt_ids: Sequence[int],
    cache: Cache,
    *,
    chunk_size: int = CHUNK_SIZE,
    cancellation: Cancellation | None = None,
) -> Logits:
    """Feeds the prompt to ``cache`` in chunks; the logits (V,) after its last token.

    The chunk size does not show in the result, see ``chunks``. Raises RequestError, before the
    first chunk, for a prompt that ``Session.step`` would refuse.
    """
    session.check_step(prompt_ids, cache)
    for chunk in chunks(prompt_ids, chunk_size):
        logits = session.step(chunk, cache, cancellation)
    return logits


def chunks(prompt_ids: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """Cuts a prompt into runs of ``size`` tokens, an even number: 3 counts as 4.

    So that the cuts do not show in the logits. The kernels of quantized products (MatMulNBits) take
    rows in pairs, and the last of an odd number alone, by other code: its last float bit differs,
    which quantized activations make 1 % of a logit (int4 in blocks of 64 or 128 with AVX-512: 0.2
    of 11). With even cuts the same row is the odd one, or none, whatever the size. One row alone
    also takes the attention kernel of decoding: a last token joins the chunk before it.
    """
    start, size = 0, longest_chunk(size) - 1
    while start < len(prompt_ids):
        end = start + size
        if len(prompt_ids) - end == 1:
            end += 1
        yield prompt_ids[start:end]
        start = end


def longest_chunk(size: int) -> int:
    """The most tokens of a run that ``chunks`` makes of ``size``."""
    return max(2, size + size % 2) + 1


def generate_tokens(
    session: Session,
    prompt_ids: Sequence[int],
    sampler: Sampler,
    limit: int,
    *,
    cache: Cache | ReusableCache | None = None,
    chunk_size: int = CHUNK_SIZE,
    logprobs: bool = False,
    cancellation: Cancellation | None = None,
) -> Iterator[Step]:
    """Yields at most ``limit`` tokens that follow ``prompt_ids``; fewer when the context is full.

    ``cache`` may hold earlier tokens; the prompt is appended to them, or takes the place of those
    that a ``ReusableCache`` holds, but for a common beginning. End tokens are the caller's to
    recognise: closing the iterator stops the work. Raises RequestError when the prompt does not
    fit, NumericsError when the logits are not finite.
    """
    token_ids = new_ids = list(prompt_ids)
    reusable = cache if isinstance(cache, ReusableCache) else None
    if isinstance(cache, ReusableCache):
        new_ids = cache.rewind(token_ids)
        cache = cache.cache
    cache = session.new_cache() if cache is None else cache
    started = time.perf_counter()
    logits = prefill(session, new_ids, cache, chunk_size=chunk_size, cancellation=cancellation)
    for remaining in range(limit, 0, -1):
        token = sampler(logits, token_ids)
        chosen = logprob(logits, token) if logprobs else None
        yield Step(token, chosen, time.perf_counter() - started)
        started = time.perf_counter()  # what the caller did with the token is not our time
        if remaining == 1 or cache.length == session.shape.context_length:
            return
        if reusable is not None:
            reusable.check_holds(token_ids)
        token_ids.append(token)
        logits = session.step([token], cache, cancellation)
