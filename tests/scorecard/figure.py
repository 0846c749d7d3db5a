"""A figure of the scorecard: what was tried, how it came out, and whether that is good enough."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Conditions:
    """How a figure is to be measured.

    quick   a tenth of the cases
    seed    of all that is random
    out     a folder for what failed, with a line that reproduces each
    """

    quick: bool
    seed: int
    out: Path

    def count(self, full: int, least: int = 1) -> int:
        """How many cases, where the whole has ``full``."""
        return max(least, full // 10) if self.quick else full

    @property
    def random(self) -> random.Random:
        """Of the seed."""
        return random.Random(self.seed)


class NotRun(Exception):
    """Something that the figure needs is not to be had here; the message says what."""


@dataclass
class Figure:
    """What came out; ``worst`` and ``threshold`` are in ``unit``.

    A figure passes if nothing failed or was late and ``worst`` is at most ``threshold``.
    """

    unit: str
    threshold: float
    worst: float = 0.0
    ok: int = 0
    fail: int = 0
    late: int = 0
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether it is good enough; one without a case is not."""
        return not (self.fail or self.late) and self.ok > 0 and self.worst <= self.threshold

    def check(
        self,
        right: bool,
        conditions: Conditions,
        name: str,
        reproduce: str,
        *,
        timed: bool = False,
    ) -> None:
        """Counts a case; what failed leaves ``reproduce`` in a file of that name.

        One that is ``timed`` was late: nothing but the clock is against it.
        """
        if right:
            self.ok += 1
            return
        self.late += timed
        self.fail += not timed
        conditions.out.mkdir(parents=True, exist_ok=True)
        (conditions.out / f"{name}.txt").write_text(reproduce + "\n", "utf-8")

    def line(self, name: str, seed: int, seconds: float) -> str:
        """One line of JSON."""
        told = asdict(self)
        notes = told.pop("notes")
        return json.dumps(
            {
                "id": name,
                "n": self.ok + self.fail + self.late,
                **told,
                "pass": self.passed,
                "seed": seed,
                "secs": round(seconds, 1),
                **notes,
            }
        )


Measure = Callable[[Conditions], Figure]
