"""What was computed of a text, outside any cache: to go on from later, or in another process.

Letters: T tokens, K key/value heads, E head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from numpy.typing import NDArray

from .arena import Cache
from .chunks import Chunked
from .request import Request
from .sequence import Sequence as Running


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

    def first(self, length: int) -> Prefix | None:
        """What it has of the first ``length`` tokens, where a chunk ends: views; None of none."""
        if not length:
            return None
        return Prefix(self.computed.first(length), [value[:, :length] for value in self.values])


class Prefixes(Protocol):
    """Where prompts that were computed are kept."""

    def find(self, prompt: Chunked) -> Prefix | None:
        """What need not be computed of ``prompt``, if anything."""

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
    copied = replace(
        computed,
        token_ids=tuple(computed.token_ids[:end]),
        ends=tuple(computed.ends),
        logits=logits,
    )
    return Prefix(copied, [value[:, :end].copy() for value in sequence.cache.values()])


def resumed(request: Request, cache: Cache, context_length: int, prefix: Prefix | None) -> Running:
    """The sequence of ``request`` in the empty ``cache``, which gets what ``prefix`` has of it."""
    if prefix is None:
        return Running(request, cache, context_length)
    cache.fill(prefix.values, prefix.length)
    return Running(request, cache, context_length, computed=prefix.computed)
