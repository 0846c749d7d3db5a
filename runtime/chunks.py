"""A prompt is computed in runs of so many tokens that how it was cut does not show."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from .arena import Cache
from .cancellation import Cancellation
from .session import Logits, Session

# Tokens per run: long enough that the weights' traffic is shared by many rows, short enough that
# the S × T work of a chunk stays small and a cancellation is prompt.
CHUNK_SIZE = 256


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
    cache.text_length = cache.length + len(prompt_ids)
    for chunk in chunks(prompt_ids, chunk_size):
        logits = session.step(chunk, cache, cancellation)
    return logits


def chunks(prompt_ids: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """Cuts a prompt into runs of ``size`` tokens, see ``cuts``."""
    start = 0
    for end in cuts(len(prompt_ids), size):
        yield prompt_ids[start:end]
        start = end


def cuts(count: int, size: int) -> list[int]:
    """Where a prompt of ``count`` tokens is cut: runs of ``size``, an even number; 3 counts as 4.

    So that the cuts do not show in the logits. The kernels of quantized products (MatMulNBits) take
    rows in pairs, and the last of an odd number alone, by other code: its last float bit differs,
    which quantized activations make 1 % of a logit (int4 in blocks of 64 or 128 with AVX-512: 0.2
    of 11). With even cuts the same row is the odd one, or none, whatever the size. One row alone
    also takes the attention kernel of decoding: a last token joins the chunk before it.
    """
    step = longest_chunk(size) - 1
    ends = [*range(step, count, step), count] if count else []
    if len(ends) > 1 and count - ends[-2] == 1:
        del ends[-2]
    return ends


def longest_chunk(size: int) -> int:
    """The most tokens of a run that ``chunks`` makes of ``size``."""
    return max(2, size + size % 2) + 1


@dataclass(frozen=True)
class Chunked:
    """What was computed in chunks, or is to be; any text that is cut alike begins with the same.

    token_ids   those that were computed; there may be more
    ends        where the chunks ended, of those that were computed
    logits      after the last end (V,), if that is known: of a prompt at its end
    alike       tokens up to which texts are rotated alike, whatever their length; None: all are
    text_length tokens of the longest text for which some of it was computed; 0: those of token_ids
    """

    token_ids: Sequence[int]
    ends: Sequence[int]
    logits: Logits | None = None
    alike: int | None = None
    text_length: int = 0

    def shared(self, prompt: Chunked) -> int:
        """How many tokens of ``prompt`` need not be computed.

        All of them only where the logits after them are known.
        """
        kept = 0
        longest = max(len(prompt.token_ids), len(self.token_ids), self.text_length)
        if prompt.alike is not None and longest > prompt.alike:
            return 0
        for end, other in zip(self.ends, prompt.ends, strict=False):
            if end != other or list(self.token_ids[kept:end]) != list(prompt.token_ids[kept:end]):
                break
            if end == len(prompt.token_ids) and (self.logits is None or end != self.ends[-1]):
                break
            kept = end
        return kept

    def first(self, length: int) -> Chunked:
        """The first ``length`` tokens of it, where a chunk ends."""
        ends = [end for end in self.ends if end <= length]
        whole = len(ends) == len(self.ends)
        logits = self.logits if whole else None
        return replace(self, token_ids=self.token_ids[:length], ends=ends, logits=logits)


def reusable(shared: int, count: int) -> int:
    """How many rows of a prompt of ``count`` tokens may be kept of ``shared`` that were computed.

    An even number, so that the rest is cut where a whole prompt could be, and all but two tokens at
    most: logits come from feeding, and one token alone is computed by other kernels.
    """
    return max(0, min(shared, count - 2)) // 2 * 2
