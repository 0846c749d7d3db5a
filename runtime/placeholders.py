r"""Texts with places to fill: "Review: {text}\nSentiment:" and values go in, a text comes out.

A place is a word in braces; any other brace is itself. What is filled in is not looked at again.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from ..export.errors import RequestError
from ..export.strict_json import quoted

_PLACE = re.compile(r"\{(\w+)\}")


def fill(template: str, values: Mapping[str, str]) -> str:
    """``template`` with the value of each of its places."""
    return _PLACE.sub(lambda match: values[match[1]], template)


def check_places(
    name: str, template: str, required: Collection[str], optional: Collection[str] = ()
) -> None:
    """Raises RequestError for a ``template`` called ``name`` with other places than these."""
    found = _PLACE.findall(template)
    known = ", ".join(f"{{{place}}}" for place in (*required, *optional))
    for place in found:
        if place not in required and place not in optional:
            raise RequestError(
                f"{name} is {quoted(template)}, found {{{place}}} in it, expected {known}; "
                "correct the word in braces"
            )
    for place in required:
        if place not in found:
            raise RequestError(
                f"{name} is {quoted(template)}, expected {{{place}}} in it, where that text goes; "
                "put it there"
            )
