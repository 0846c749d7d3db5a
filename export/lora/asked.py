"""An adapter as a user names it: ``DIR``, or ``DIR:0.5`` with the weight at which it is merged.

A folder that exists under the whole name comes first, so that one called ``a:0.5`` can be named
(and weighted: ``a:0.5:1``); else what stands behind the last colon is the weight if it reads as a
number.
``C:\\lora`` is therefore a path and ``C:\\lora:0.5`` that path with a weight.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import RequestError
from ..strict_json import quoted
from ..whole_number import brief

LARGEST_WEIGHT = 100.0
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?(nan|inf|infinity)", re.I | re.A)


@dataclass(frozen=True)
class AskedAdapter:
    """A folder, and how much of the difference that the adapter makes is added."""

    folder: Path
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.weight) and 0 < self.weight <= LARGEST_WEIGHT):
            raise RequestError(
                f"adapter {quoted(str(self.folder))}: found the weight {self.weight:g}, expected a "
                f"number above 0 and up to {LARGEST_WEIGHT:g}; 1 merges it as it was trained"
            )


def asked_adapters(asked: Sequence[str | Path] | None) -> list[AskedAdapter]:
    """What each of a list means; RequestError for what is no list, and as ``asked_adapter``."""
    if asked is None:
        return []
    if not isinstance(asked, list | tuple):
        raise RequestError(
            f"adapters is {brief(asked)}, expected a list of folders; give each with its weight "
            "behind a colon or none, as ['lora/:0.5']"
        )
    return [asked_adapter(each) for each in asked]


def asked_adapter(asked: str | Path | AskedAdapter) -> AskedAdapter:
    """What ``asked`` means, as the module docstring says; a ``pathlib.Path`` has no weight.

    Raises RequestError for an empty name and for a weight that is none.
    """
    if isinstance(asked, AskedAdapter):
        return asked
    if isinstance(asked, Path):
        return AskedAdapter(asked)
    if not isinstance(asked, str):
        raise RequestError(
            f"adapter is {brief(asked)}, expected the name of a folder, or a path; a weight stands "
            "behind a colon, as 'lora/:0.5'"
        )
    folder, colon, weight = asked.rpartition(":")
    if not asked.strip() or (colon and not folder.strip()):
        raise RequestError(
            f"adapter: found {quoted(asked)}, expected a folder, or a folder and a weight as "
            "lora/:0.5; is a variable not set?"
        )
    if colon and _NUMBER.fullmatch(weight) and not Path(asked).is_dir():
        return AskedAdapter(Path(folder), float(weight))
    return AskedAdapter(Path(asked))
