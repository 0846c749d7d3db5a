"""A cache that outlives a generation: the next prompt is computed from where it differs on.

In a conversation every prompt begins with the one before it and the answer to that. Rows that were
computed one at a time, as an answer's are, may differ in the last bit from those of a prompt (see
``chunks``), so the text may in time diverge from that of an empty cache, as between two machines;
the same sequence of prompts gives the same texts.
"""

from __future__ import annotations

from ..export.errors import RequestError
from .arena import Cache
from .chunks import reusable
from .request import Request
from .sequence import Sequence
from .session import Session
from .shared_beginning import shared_beginning


class ReusableCache:
    """The KV cache of a session and the tokens it holds; for one generation after another."""

    def __init__(self, session: Session) -> None:
        self.cache: Cache = session.new_cache()
        self._context_length = session.shape.context_length
        self._sequence: Sequence | None = None  # whose tokens the cache holds

    def start(self, request: Request) -> Sequence:
        """The sequence of ``request``, for which the cache forgets what its prompt differs in.

        The one before may not go on. Never is the whole prompt held, since logits come from
        feeding, nor all but one token: one row alone is computed by another kernel.
        """
        held = [] if self._sequence is None else self._sequence.token_ids[: self.cache.length]
        prompt_ids = request.prompt_ids
        kept = reusable(shared_beginning(held, prompt_ids), len(prompt_ids))
        self.cache.truncate(kept)
        self._sequence = Sequence(request, self.cache, self._context_length, self)
        return self._sequence

    def check_holds(self, sequence: Sequence) -> None:
        """Raises RequestError if another generation has taken the cache since ``start``."""
        if self._sequence is not sequence:
            raise RequestError(
                "another generation uses the cache of this one, expected one at a time; finish or "
                "cancel the first before the next, or give each its own"
            )
