"""A model that takes its time, so that there is time to meet it at whatever it does."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from typing import Any

from pocketlm.runtime.model import Model

BLOCK = bytes(1 << 16)


@dataclass
class Steps:
    """How many there were; ``seconds`` each takes at least, ``prompt_seconds`` one of a prompt.

    busily      whether it computes meanwhile, as a model does, or sleeps
    """

    seconds: float = 0.0
    prompt_seconds: float = 0.0
    busily: bool = False
    count: int = 0

    def take(self, tokens: int) -> None:
        """One, of so many tokens of a sequence."""
        self.count += 1
        wait(self.prompt_seconds if tokens > 1 else self.seconds, self.busily)


def wait(seconds: float, busily: bool = False) -> None:
    """Without keeping Python's other threads from going on."""
    if not busily:
        time.sleep(seconds)
        return
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        hashlib.sha256(BLOCK)


def slowed(model: Model, steps: Steps) -> Model:
    """``model``, whose every step is counted, and takes as long as ``steps`` say."""
    session: Any = model.session
    alone, together = session.step, session.step_together

    def step(token_ids: Any, *arguments: Any, **options: Any) -> Any:
        steps.take(len(token_ids))
        return alone(token_ids, *arguments, **options)

    def step_together(feeds: Any, *arguments: Any, **options: Any) -> Any:
        steps.take(max(len(ids) for _, ids in feeds))
        return together(feeds, *arguments, **options)

    session.step, session.step_together = step, step_together
    return model
