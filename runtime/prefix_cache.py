"""Prompts that were computed lately, in memory, for those that begin as one of them."""

from __future__ import annotations

import threading
from collections import OrderedDict

from ..export.errors import RequestError
from ..export.memory import free_bytes
from ..export.whole_number import brief, whole_number
from .chunks import Chunked
from .prefix import Prefix, prompt_prefix
from .sequence import Sequence

MOST_BYTES = 256 << 20  # where nobody says: 3,500 tokens of GPT-2 124M in float32
SHARE = 8  # and no more than this part of the memory that is free


class PrefixCache:
    """The prompts used last, as many as fit into ``most_bytes``; threads may share it.

    A prompt finds what an equal one left, and else the chunks that it has in common with another,
    so that its tokens are, bit by bit, those that it gets without this. Answers are not kept:
    they were computed one token at a time.

    num_bytes       of what is kept
    most_bytes      that it may come to; 0: nothing is kept
    hits, misses    prompts of which something was found, and others
    reused_tokens   that need not be computed because of it
    """

    def __init__(self, bytes_per_token: int, most_bytes: int | None = None) -> None:
        """``bytes_per_token`` is the session's; ``most_bytes`` None: ``MOST_BYTES`` or a ``SHARE``.

        Raises RequestError for no number.
        """
        self._bytes_per_token = bytes_per_token
        self.most_bytes = _default() if most_bytes is None else _checked(most_bytes)
        self.num_bytes = 0
        self.hits = self.misses = self.reused_tokens = 0
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[int, ...], Prefix] = OrderedDict()  # the latest used last

    def __len__(self) -> int:
        """How many prompts are kept."""
        return len(self._kept)

    def clear(self) -> None:
        """Forgets them all."""
        with self._lock:
            self._kept.clear()
            self.num_bytes = 0

    def close(self) -> None:
        """Forgets them all, and keeps none from now on."""
        self.most_bytes = 0
        self.clear()

    def find(self, prompt: Chunked) -> Prefix | None:
        """The most that one of those kept has of ``prompt``; None: none has any."""

        def shared(prefix: Prefix) -> int:
            return prefix.computed.shared(prompt)

        with self._lock:
            best = max(self._kept.values(), key=shared, default=None)
            found = 0 if best is None else shared(best)
            if best is None or not found:
                self.misses += 1
                return None
            self.hits += 1
            self.reused_tokens += found
            self._kept.move_to_end(tuple(best.computed.token_ids))
            return best.first(found)

    def keep(self, sequence: Sequence) -> None:
        """Copies what ``sequence`` has computed of its prompt, and forgets what was used least."""
        computed = sequence.computed
        if not computed.ends or sequence.num_recomputed or self._has(computed):
            return
        if computed.ends[-1] * self._bytes_per_token > self.most_bytes:
            return
        try:
            prefix = prompt_prefix(sequence)
        except MemoryError:  # it would only have saved time
            return
        if prefix is not None:
            self._put(prefix)

    def _has(self, computed: Chunked) -> bool:
        """Whether nothing is to be had from these that is not had from one that is kept."""
        ids = tuple(computed.token_ids[: computed.ends[-1]])
        with self._lock:
            kept = self._kept.get(ids)
            return kept is not None and (
                kept.computed.logits is not None or computed.logits is None
            )

    def _put(self, prefix: Prefix) -> None:
        with self._lock:
            ids = tuple(prefix.computed.token_ids)
            self._forget(ids)
            self._kept[ids] = prefix
            self.num_bytes += prefix.num_bytes
            while self.num_bytes > self.most_bytes:
                self._forget(next(iter(self._kept)))

    def _forget(self, ids: tuple[int, ...]) -> None:
        prefix = self._kept.pop(ids, None)
        if prefix is not None:
            self.num_bytes -= prefix.num_bytes


def _default() -> int:
    free = free_bytes()
    return MOST_BYTES if free is None else min(MOST_BYTES, free // SHARE)


def _checked(asked: object) -> int:
    number = whole_number(asked)
    if number is None or number < 0:
        raise RequestError(
            f"prefix_cache_bytes is {brief(asked)}, expected an integer from 0 up; 0 keeps "
            "nothing, and left out it is up to 256 MB"
        )
    return number
