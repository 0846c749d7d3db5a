"""A cache that outlives a generation: the next prompt is computed from where it differs on.

In a conversation every prompt begins with the one before it and the answer to that. Rows that were
computed one at a time, as an answer's are, may differ in the last bit from those of a prompt (see
``chunks``), so the text may in time diverge from that of an empty cache, as between two machines;
the same sequence of prompts gives the same texts. Where that may not be, only what was computed in
the chunks of the next prompt is kept of the one before, and answers are computed again.
"""

from __future__ import annotations

from dataclasses import replace

from ..export.errors import RequestError
from .arena import Cache
from .chunks import Chunked, reusable
from .prefix import Prefix
from .request import Request
from .sequence import Sequence
from .session import Session
from .shared_beginning import shared_beginning


class ReusableCache:
    """The KV cache of a session and the tokens it holds; for one generation after another."""

    def __init__(self, session: Session, prefix: Prefix | None = None) -> None:
        """It begins with what ``prefix`` holds; ResourceError where there is no memory for it."""
        self.cache: Cache = session.new_cache()
        self._session = session
        self._before = Chunked((), ())  # what it held before the first sequence
        self._sequence: Sequence | None = None  # whose tokens the cache holds
        if prefix is not None:
            self.cache.fill(prefix.values, prefix.length)
            self._before = prefix.computed

    @property
    def computed(self) -> Chunked:
        """The tokens that it holds, and what of them was computed in chunks."""
        found = self._before if self._sequence is None else self._sequence.computed
        return replace(found, token_ids=found.token_ids[: self.cache.length])

    def copy(self) -> ReusableCache:
        """Another one that holds the same. Raises ResourceError where there is no memory for it."""
        made = ReusableCache(self._session)
        made.cache = self.cache.copy()
        made._before = self.computed
        return made

    def start(self, request: Request, exactly: bool = False) -> Sequence:
        """The sequence of ``request``, for which the cache forgets what its prompt differs in.

        The one before may not go on. Never is the whole prompt held, since logits come from
        feeding, nor all but one token: one row alone is computed by another kernel. ``exactly``
        keeps only what an empty cache would come to hold, bit by bit, and that may be all of it.
        """
        held, context_length = self.computed, self._session.shape.context_length
        prompt = request.seen(context_length, self._session.rotated_alike)
        if exactly:
            kept = held.shared(prompt)
        else:
            shared = shared_beginning(held.token_ids, prompt.token_ids)
            kept = reusable(shared, len(prompt.token_ids))
        self.cache.truncate(kept)
        self._sequence = Sequence(request, self.cache, context_length, self, held)
        return self._sequence

    def check_holds(self, sequence: Sequence) -> None:
        """Raises RequestError if another generation has taken the cache since ``start``."""
        if self._sequence is not sequence:
            raise RequestError(
                "another generation uses the cache of this one, expected one at a time; finish or "
                "cancel the first before the next, or give each its own"
            )
