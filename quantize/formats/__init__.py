"""One file per number format: byte layout, ``pack`` and ``unpack``, the nodes it becomes.

Each file offers ``FORMATS``, the formats that it defines, with all their parameters; a plan names
them, and they are found by name. A new format is a new file here, and nothing else.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from typing import TYPE_CHECKING, Protocol, TypeGuard

from ...export.errors import RequestError
from ...export.strict_json import shown

if TYPE_CHECKING:
    from ...export.graph import Graph
    from ..feedback import Feedback
    from ..weights import LinearWeight, Measure, PackedParts, Parts, Value


class Format(Protocol):
    """What a weight is stored as, and what a product with it becomes."""

    @property
    def name(self) -> str:
        """As it stands in plans and manifests: int4-block128."""

    @property
    def bits_per_weight(self) -> float:
        """All stored bits, over the number of weights; what a row has but once is left out."""

    @property
    def note(self) -> str:
        """Of a fitted one: why it is not what was asked for; else empty."""

    @property
    def stored_by_rows(self) -> bool:
        """Whether one output feature lies behind the other, so that some of them can be packed."""

    @property
    def has_embedding(self) -> bool:
        """Whether rows can be looked up in it: it is an ``EmbeddingFormat``."""

    def fitted(self, weight: LinearWeight) -> Format | str:
        """This format, or the nearest to it that ``weight`` can have, or why there is none."""

    def packed(
        self,
        weight: LinearWeight,
        start: int,
        stop: int,
        measure: Measure,
        feedback: Feedback | None = None,
    ) -> Parts:
        """Reads output features ``start`` to ``stop``, packs them, and measures what that loses.

        With ``feedback`` roundings make up for each other; NotPositive if it has no factor.
        """

    def linear(self, g: Graph, x: Value, weight: LinearWeight, parts: PackedParts) -> Value:
        """The nodes of a product: x (…, K) -> (…, N)."""


class EmbeddingFormat(Format, Protocol):
    """A format that can be looked up in, so that a tied embedding and head are stored once."""

    def embedding(self, g: Graph, ids: Value, weight: LinearWeight, parts: PackedParts) -> Value:
        """The nodes of a lookup: ids (…) -> (…, K), over the bytes of ``linear``."""


def embeds(number_format: Format) -> TypeGuard[EmbeddingFormat]:
    """Whether ``number_format`` can be looked up in."""
    return number_format.has_embedding


@functools.cache
def known_formats() -> dict[str, Format]:
    """Every format of the files in this folder, by name."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    modules = [importlib.import_module(f"{__name__}.{name}") for name in names]
    return {known.name: known for module in modules for known in module.FORMATS}


def find_format(name: str) -> Format:
    """The format of that name; RequestError lists the known ones otherwise."""
    known = known_formats()
    if name not in known:
        raise RequestError(
            f"found the format {shown(name)}, expected one of fp32, {', '.join(known)}; "
            "choose one of them"
        )
    return known[name]
