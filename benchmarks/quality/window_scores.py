"""Runs models side by side over a window, and scores them where its tokens are scored.

The rows of a window before the first scored one only fill the KV cache: the output head is not
computed for them. The scored ones follow in chunks, whose logits are compared at once, so that a
few hundred rows of logits exist however long the window and the text are. Windows overlap, but a
key depends on its place in the window, so that no window can take rows over from the last one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from ...export.errors import RequestError
from ...runtime.chunks import CHUNK_SIZE, chunks, longest_chunk
from ...runtime.session import Session
from .divergence import Comparison, Logits, Rows

ROWS = 128  # scored at once; even, as chunks are


class WindowScores:
    """Scores windows with several sessions, the reference first; a session may be there twice."""

    def __init__(self, sessions: Sequence[Session]) -> None:
        vocab_size = sessions[0].shape.vocab_size
        self._runs = [_Run(session) for session in sessions]
        self._comparison = Comparison(vocab_size)
        self._vocab_size = vocab_size

    def score(self, inputs: Sequence[NDArray[np.int64]], targets: NDArray[np.int64]) -> list[Rows]:
        """One ``Rows`` per session; each reads its own ``inputs`` (S,), all of one length.

        The last of the S rows predict ``targets``. Raises RequestError for a token without a row.
        """
        if targets.max(initial=0) >= self._vocab_size:
            raise RequestError(
                f"the text has the token id {targets.max()}, expected 0 to {self._vocab_size - 1}, "
                "for which the model has rows; leave out what spells it"
            )
        first = len(inputs[0]) - len(targets)
        parts: list[list[Rows]] = [[] for _ in self._runs]
        chunked = [
            run.chunks(ids.tolist(), first) for run, ids in zip(self._runs, inputs, strict=True)
        ]
        for logits in zip(*chunked, strict=True):
            found = self._comparison.compare(logits, targets[: len(logits[0])])
            targets = targets[len(logits[0]) :]
            for part, rows in zip(parts, found, strict=True):
                part.append(rows)
        return [Rows.joined(part) for part in parts]


class _Run:
    """A session with a KV cache and room for the logits of a chunk, both used again and again."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._cache = session.new_cache()
        self._logits = np.empty((longest_chunk(ROWS), session.shape.vocab_size), np.float32)

    def chunks(self, ids: list[int], first: int) -> Iterator[Logits]:
        """The logits of rows ``first`` to the last, chunk by chunk, each overwritten by the next.

        No chunk is a single row, see ``runtime.chunks``: a row before ``first`` joins it.
        """
        self._cache.truncate(0)
        self._cache.text_length = len(ids)
        begin = first - 1 if len(ids) - first == 1 and first else first
        begin = 0 if begin == 1 else begin
        for chunk in chunks(ids[:begin], CHUNK_SIZE):
            self._session.step(chunk, self._cache)
        for chunk in chunks(ids[begin:], ROWS):
            logits = self._session.all_logits(chunk, self._cache, self._logits)
            yield logits[first - begin :]
            first = begin
