"""A cache that outlives a generation: the next prompt is computed from where it differs on.

In a conversation every prompt begins with the one before it and the answer to that. Rows that were
computed one at a time, as an answer's are, may differ in the last bit from those of a prompt (see
``chunks``), so the text may in time diverge from that of an empty cache, as between two machines;
the same sequence of prompts gives the same texts.
"""

from __future__ import annotations

from ..export.errors import RequestError
from .session import Session
from .shared_beginning import shared_beginning


class ReusableCache:
    """The KV cache of a session and the tokens it holds; for one generation after another."""

    def __init__(self, session: Session) -> None:
        self.cache = session.new_cache()
        self.num_reused = 0
        """How many tokens of the last prompt were there already."""
        self._token_ids: list[int] = []  # the cache has its rows of the first ``length`` of them

    def rewind(self, token_ids: list[int]) -> list[int]:
        """Forgets what ``token_ids`` do not begin with; returns those that are still to be fed.

        That is never none, since logits come from feeding, nor a single one of several: one row
        alone is computed by another kernel. ``token_ids`` is kept, not copied: a generation
        appends to it what it feeds.
        """
        held = self._token_ids[: self.cache.length]
        shared = shared_beginning(held, token_ids)
        self.num_reused = max(0, min(shared, len(token_ids) - 2))
        self.cache.truncate(self.num_reused)
        self._token_ids = token_ids
        return token_ids[self.num_reused :]

    def check_holds(self, token_ids: list[int]) -> None:
        """Raises RequestError if another generation has taken the cache since ``rewind``."""
        if self._token_ids is not token_ids:
            raise RequestError(
                "another generation uses the cache of this one, expected one at a time; finish or "
                "cancel the first before the next, or give each its own"
            )
