"""A stage of Ray Data that generates text: one model for each worker, rows in, the same rows out.

    import ray, pocketlm.ray

    ds = ray.data.from_items([{"prompt": "Once upon a time"}, {"prompt": "It was"}])
    ds = ds.map_batches(
        pocketlm.ray.Generator,
        fn_constructor_kwargs={"model": "gpt2-int8/", "max_tokens": 64},
        concurrency=2,
        batch_size=16,
    )
    ds.show()

Every worker opens the folder by itself: give a path that all machines know. Ray makes a row anew
when a worker dies, and its seed is that of its prompt or of a column, not of its place or of its
turn, so that it gets the same tokens: those of ``Model.generate`` with ``reproducible``, that seed
and as many threads.

Source: the API reference of Ray, ``ray.data.Dataset.map_batches``.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pocketlm.export.errors import RequestError
from pocketlm.models.loading import load
from pocketlm.runtime.request import Request
from pocketlm.runtime.row_rule import MOST_ROWS

LOADING = frozenset(inspect.signature(load).parameters) - {"path"}
ADDED = ("text", "finish_reason", "num_tokens")

Columns = dict[str, Any]


class Generator:
    """What ``map_batches`` calls with the columns of some rows, in each of its workers.

    Returns them with a "text", a "finish_reason" (see ``Result``) and "num_tokens", how many were
    generated.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        prompt_column: str = "prompt",
        seed_column: str | None = None,
        seed: int = 0,
        chat: bool = False,
        rows: int = MOST_ROWS,
        threads: int = 1,
        **options: Any,
    ) -> None:
        """Opens the model; a row's prompt is a text or token ids.

        ``seed_column`` has a seed for each row; without it that is made of ``seed`` and the prompt,
        so that equal prompts get equal texts. With ``chat`` a prompt is a message that the model
        answers. ``rows`` run at once, on as many ``threads`` as the stage has CPUs (``num_cpus``, 1
        unless given). ``options`` are those of ``pocketlm.load`` and of ``Model.stream``.

        Raises what ``load`` raises, and RequestError for an option that cannot be.
        """
        loading = {name: options.pop(name) for name in LOADING & options.keys()}
        self.model = load(model, threads=threads, **loading)
        self.model.request([0], **options)  # before any row comes
        self._prompt_column = prompt_column
        self._seed_column = seed_column
        self._seed = seed
        self._chat = chat
        self._rows = rows
        self._options = options

    def __call__(self, batch: Columns) -> Columns:
        """Raises RequestError, with the prompt, for a row that cannot be."""
        requests = self._requests(batch)
        found: list[Any] = [None] * len(requests)
        for result in self.model.generate_many(requests, rows=self._rows):
            if result.error is not None:
                raise result.error
            found[result.index] = result
        return {
            **batch,
            "text": np.array([result.text for result in found], object),
            "finish_reason": np.array([result.finish_reason for result in found], object),
            "num_tokens": np.array([len(result.token_ids) for result in found], np.int64),
        }

    def _requests(self, batch: Columns) -> list[Request]:
        needed = [self._prompt_column, *([] if self._seed_column is None else [self._seed_column])]
        for name in needed:
            if name not in batch:
                raise RequestError(
                    f"found the columns {', '.join(batch)}, expected one called {name!r}; name "
                    "yours with prompt_column or seed_column"
                )
        if taken := [name for name in ADDED if name in batch]:
            raise RequestError(
                f"found a column {taken[0]!r}, which is to be added, expected none; rename it with "
                "Dataset.rename_columns"
            )
        prompts = [_plain(prompt) for prompt in batch[self._prompt_column]]
        if self._seed_column is None:
            seeds = [prompt_seed(self._seed, prompt) for prompt in prompts]
        else:
            seeds = [int(seed) for seed in batch[self._seed_column]]
        return [self._request(*pair) for pair in zip(prompts, seeds, strict=True)]

    def _request(self, prompt: Any, seed: int) -> Request:
        asked = prompt
        try:
            if self._chat:
                asked = self.model.chat_prompt([{"role": "user", "content": prompt}])
            return self.model.request(asked, **{"seed": seed, **self._options})
        except RequestError as error:
            raise RequestError(f"the row with the prompt {prompt!r:.60}: {error}") from error


def prompt_seed(seed: int, prompt: str | Sequence[int]) -> int:
    """The seed of a row without one: 32 bits of its prompt and ``seed``, wherever it runs."""
    data = json.dumps([seed, prompt]).encode()
    return int.from_bytes(hashlib.sha256(data).digest()[:4])


def _plain(prompt: Any) -> Any:
    """A text or ids as Python has them, of NumPy's."""
    return prompt.tolist() if isinstance(prompt, np.ndarray | np.generic) else prompt
