"""Where the weights of a graph lie: whole in its own file, or within the data files it may have.

No other file is named, nothing lies outside, and two weights share a range or have none in common.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from ..strict_json import quoted
from .onnx_file import ITEM_BYTES, GraphRefused, Tensor, type_name

LARGEST_RANK = 8


def check_tensor(tensor: Tensor) -> int:
    """Bytes of a tensor, which are all there if they are in the graph's own file."""
    size = ITEM_BYTES.get(tensor.dtype)
    if size is None or len(tensor.dims) > LARGEST_RANK or min(tensor.dims, default=0) < 0:
        raise GraphRefused(
            f"the weight {quoted(tensor.name)} of {type_name(tensor.dtype)} {tensor.dims[:9]}",
            f"numbers in up to {LARGEST_RANK} dimensions of 0 or more",
        )
    length = size * math.prod(tensor.dims)
    if tensor.external and tensor.data is not None:
        raise GraphRefused(f"the weight {quoted(tensor.name)} in two places", "in one")
    if not tensor.external and (tensor.data is None or len(tensor.data) != length):
        raise GraphRefused(
            f"{len(tensor.data or b'')} bytes of the weight {quoted(tensor.name)}", f"{length}"
        )
    return length


def place_of(tensor: Tensor, length: int, data_bytes: Mapping[str, int]) -> tuple[str, int, int]:
    """(file, offset, length) of an external tensor of ``length`` bytes in one of the data files."""
    where = dict(tensor.external)
    numbers = [where.get(key, "") for key in ("offset", "length")]
    if (
        len(tensor.external) != 3
        or where.keys() != {"location", "offset", "length"}
        or not all(map(_is_number, numbers))
    ):
        raise GraphRefused(
            f"external_data {tensor.external[:4]!r:.120} of {quoted(tensor.name)}",
            "location, offset and length once each",
        )
    offset, found = map(int, numbers)
    check_place(tensor.name, where["location"], offset, found, length, data_bytes)
    return where["location"], offset, length


def _is_number(text: str) -> bool:
    """Whether it is a whole number as everybody reads it."""
    return text.isascii() and text.isdigit() and len(text) < 20 and str(int(text)) == text


def check_place(
    name: str,
    location: str,
    offset: int,
    length: int,
    expected: int,
    data_bytes: Mapping[str, int],
) -> None:
    """Raises GraphRefused unless the ``expected`` bytes lie within one of the data files.

    ``data_bytes`` has the size of each by name.
    """
    if location not in data_bytes:
        raise GraphRefused(
            f"the weight {quoted(name)} in the file {quoted(location)}", " or ".join(data_bytes)
        )
    if length != expected or offset < 0 or offset + length > data_bytes[location]:
        raise GraphRefused(
            f"{length} bytes from {offset} on for the weight {quoted(name)}",
            f"{expected} within the {data_bytes[location]} of {location}",
        )


def check_apart(places: set[tuple[str, int, int]]) -> None:
    """Raises GraphRefused where two different (file, offset, length) have bytes in common."""
    last, end = "", 0
    for file, offset, length in sorted(place for place in places if place[2]):
        if file != last:
            last, end = file, 0
        if offset < end:
            raise GraphRefused(f"a weight from byte {offset} on within another", f"from {end} on")
        end = offset + length
