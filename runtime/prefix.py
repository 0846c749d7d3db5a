"""What was computed of a text, outside any cache: to go on from later, or in another process.

Letters: T tokens, K key/value heads, E head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray

from .arena import Cache
from .chunks import Chunked, cuts
from .request import Request
from .sequence import Sequence as Running
from .sequence import first_seen
from .session import Session


@dataclass(frozen=True)
class Prefix:
    """The beginning of a text, and its keys and values.

    computed    the token ids (T), and what of them was computed in chunks
    values      (K, T, E) of every layer's keys, then its values
    """

    computed: Chunked
    values: Sequence[NDArray[Any]]

    @property
    def length(self) -> int:
        """T."""
        return int(self.values[0].shape[1])

    @property
    def num_bytes(self) -> int:
        """Of its arrays."""
        logits = self.computed.logits
        rest = 0 if logits is None else logits.nbytes
        return sum(value.nbytes for value in self.values) + rest


class Prefixes(Protocol):
    """Where prompts that were computed are kept."""

    def find(self, computed: Chunked) -> Prefix | None:
        """What begins as the text ``computed``, which is to be cut at its ends, if anything."""

    def keep(self, sequence: Running) -> None:
        """Takes what ``sequence`` has computed of its prompt."""


def prompt_prefix(sequence: Running) -> Prefix | None:
    """A copy of what ``sequence`` has computed of its prompt in chunks; None where that is none.

    None, too, once the context has slid: the prompt's rows are gone.
    """
    computed = sequence.computed
    if not computed.ends or sequence.num_recomputed:
        return None
    end = computed.ends[-1]
    logits = None if computed.logits is None else computed.logits.copy()
    copied = Chunked(tuple(computed.token_ids[:end]), tuple(computed.ends), logits)
    return Prefix(copied, [value[:, :end].copy() for value in sequence.cache.values()])


def to_compute(session: Session, request: Request) -> Chunked:
    """The prompt as the model sees it, and where it is to be cut.

    Raises RequestError for a prompt that does not fit.
    """
    seen = first_seen(request, session.shape.context_length)
    ends = cuts(len(seen), request.chunk_size)
    return Chunked(seen, ends, alike=session.rotated_alike)


def resumed(session: Session, request: Request, cache: Cache, prefix: Prefix | None) -> Running:
    """The sequence of ``request`` in the empty ``cache``, which gets what ``prefix`` has of it."""
    context_length = session.shape.context_length
    asked = to_compute(session, request)
    kept = 0 if prefix is None else prefix.computed.shared(asked)
    if prefix is None or not kept:
        return Running(request, cache, context_length)
    cache.fill(prefix.values, kept)
    return known(request, cache, context_length, prefix.computed)


def known(request: Request, cache: Cache, context_length: int, computed: Chunked) -> Running:
    """The sequence of ``request``, of which ``cache`` holds what is ``computed``, all in chunks."""
    sequence = Running(request, cache, context_length, computed=computed)
    if not sequence.in_prompt:
        sequence.prompt_logits = computed.logits
    return sequence
