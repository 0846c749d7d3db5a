"""What a GGUF file says of itself, asked for by key and kind: a wrong one is named.

Entries of the network are under the name of its architecture ("llama.block_count"), those of the
tokenizer under "tokenizer.ggml.". Source: ggml's ``docs/gguf.md``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config_fields import LARGEST_COUNT
from ..errors import CheckpointError
from ..strict_json import quoted, shown

ADVICE = "the file is damaged or made by another program than llama.cpp's: get another one"


@dataclass(frozen=True)
class Metadata:
    """The entries of a file under one ``prefix``, in their kinds; each error names the key."""

    file: str
    entries: dict[str, Any]
    prefix: str = ""

    def under(self, prefix: str) -> Metadata:
        """Those whose keys begin with ``prefix``."""
        return Metadata(self.file, self.entries, prefix)

    def __contains__(self, key: str) -> bool:
        return self.prefix + key in self.entries

    def keys(self) -> Iterable[str]:
        """Without the prefix."""
        begin = len(self.prefix)
        return [key[begin:] for key in self.entries if key.startswith(self.prefix)]

    def raw(self, key: str) -> Any:
        """Whatever there is, or None."""
        return self.entries.get(self.prefix + key)

    def says(self, key: str) -> bool:
        """Whether there is anything but zeros, which stand for nothing."""
        value = self.raw(key)
        return bool(value.any() or not value.size if isinstance(value, np.ndarray) else value)

    def is_number(self, key: str, number: int) -> bool:
        """Whether there is this one."""
        value = self.raw(key)
        return type(value) is int and value == number

    def text(self, key: str, default: str | None = None) -> str | None:
        """A text."""
        value = self.entries.get(self.prefix + key, default)
        if value is not None and not isinstance(value, str):
            raise self.wrong(key, "a text")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self.entries.get(self.prefix + key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def count(self, key: str, default: int | None = None, most: int = LARGEST_COUNT) -> int:
        """A positive number; one for each layer must be the same for all of them."""
        value = self.entries.get(self.prefix + key, default)
        if isinstance(value, np.ndarray) and value.size and (value == value[0]).all():
            value = value[0].item()
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= most:
            raise self.wrong(key, f"a number from 1 to {most:,}, the same in every layer")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A positive number; a float32 as it is written in decimals."""
        value = self.entries.get(self.prefix + key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong(key, "a positive number")
        if not 0 < value < math.inf:
            raise self.wrong(key, "a positive number")
        with np.errstate(over="ignore"):
            single = np.float32(value)
        return float(str(single)) if float(single) == value else float(value)

    def token_id(self, key: str) -> int | None:
        """The number of a token, or None."""
        value = self.raw(key)
        if value is None or (type(value) is int and value >= 0):
            return value
        raise self.wrong(key, "the number of a token")

    def texts(self, key: str) -> list[str]:
        """A list of texts; [] where there is none."""
        value = self.entries.get(self.prefix + key, [])
        if isinstance(value, np.ndarray) and not value.size:
            return []
        if not isinstance(value, list):
            raise self.wrong(key, "a list of texts")
        return value

    def numbers(self, key: str, count: int) -> NDArray[Any] | None:
        """An array of ``count`` finite numbers, or None where there is none."""
        value = self.raw(key)
        if value is None:
            return None
        if not isinstance(value, np.ndarray) or len(value) != count or not np.isfinite(value).all():
            raise self.wrong(key, f"{count:,} numbers")
        return value

    def wrong(self, key: str, expected: str, advice: str = ADVICE) -> CheckpointError:
        """The error of the entry ``key``."""
        value = self.raw(key)
        if value is None:
            found = "is missing"
        elif isinstance(value, list | np.ndarray):
            found = f"has {len(value):,} values ({shown(np.asarray(value[:3]).tolist())})"
        else:
            found = f"is {shown(value)}"
        name = self.prefix + key
        name = name if name.isprintable() else quoted(name)
        return CheckpointError(f"{self.file}: {name} {found}, expected {expected}; {advice}")
