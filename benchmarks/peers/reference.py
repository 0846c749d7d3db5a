"""Our fp32 as the judge of the others: are their tokens those that it finds the best?

With random weights the best logit is far ahead, and a wrong rotation or a swapped head changes no
token after most prompts. So it also picks prompts after which two tokens are almost level: there a
conversion that is a little wrong takes the other one half of the time, while float32's rounding
(1e-5) takes it never.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..quality.divergence import Comparison
from . import ours

NAME, PACKAGE, PRECISIONS = ours.NAME, ours.PACKAGE, ours.PRECISIONS

# Logits this close are one: checkpoints made by ``shapes`` have many equal rows, whose logits
# differ by rounding only.
TIE = 1e-3
# A narrow lead is at least this: a KV cache in float16, which is llama.cpp's, moves logits by less.
LEAST_LEAD = 4e-3


class Model(ours.Model):
    """Answers four requests more."""

    def judge(self, ids: list[int], tokens: list[int]) -> dict[str, int]:
        """How many of ``tokens``, each after ``ids`` and the ones before it, have the top logit."""
        text = [*ids, *tokens]
        logits = self._session.all_logits(text[:-1], self._session.new_cache())[len(ids) - 1 :]
        chosen = logits[np.arange(len(tokens)), tokens]
        return {"agreed": int((chosen >= logits.max(axis=-1) - TIE).sum())}

    def make_file(self, file: str, rows: int) -> dict[str, Any]:
        """A file for that many rows of logits."""
        shape = (rows, self._session.shape.vocab_size)
        np.lib.format.open_memmap(file, "w+", np.float32, shape)
        return {}

    def record(self, ids: list[int], scored: int, file: str, first: int) -> dict[str, Any]:
        """Writes the logits for the last ``scored`` of ``ids``; what ``score`` says of them."""
        logits = self.logits(ids[:-1])[-scored:]
        np.load(file, mmap_mode="r+")[first : first + scored] = logits
        rows = Comparison(logits.shape[-1]).compare([logits], np.array(ids[-scored:]))[0]
        return {name: values.tolist() for name, values in vars(rows).items()}

    def narrow(self, texts: list[list[int]], count: int) -> dict[str, list[list[int]]]:
        """The beginnings of ``texts``, two tokens at least, after which the lead is narrowest."""
        found = []
        for ids in texts:
            logits = self._session.all_logits(ids, self._session.new_cache())  # (S, V)
            best = logits.max(axis=-1, keepdims=True)
            following = np.where(logits < best - TIE, logits, -np.inf).max(axis=-1)
            leads = best[:, 0] - following
            found += [(float(leads[i]), ids[: i + 1]) for i in range(1, len(ids))]
        return {"prompts": [ids for lead, ids in sorted(found) if lead >= LEAST_LEAD][:count]}
