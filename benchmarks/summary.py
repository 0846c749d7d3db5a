"""The results of a bench in the order in which they are read, for a terminal and for Markdown.

Warnings come first and last, since nothing below counts without them; then, if texts were given,
that a model is no way from itself, then tables, verdict and circumstances.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .figures import figure_table
from .quality_figures import (
    quality_figures,
    reference_sentence,
    self_check_sentence,
    text_sentence,
)
from .tables import Table, describe_circumstances, model_table, speed_table, warnings


def sections(results: dict[str, Any]) -> Iterator[str | Table]:
    """Sentences and tables between the warnings."""
    quality = results["quality"]
    if quality:
        yield self_check_sentence(quality)
    yield model_table(results)
    yield speed_table(results)
    if quality:
        yield text_sentence(quality)
        yield figure_table(list(quality_figures(quality)))
        yield reference_sentence(quality)
    if results["verdict"]:
        yield "\n".join(results["verdict"])
    yield describe_circumstances(results)


def markdown(results: dict[str, Any]) -> str:
    """A piece of a document."""
    loud = [f"**{text}**" for text in warnings(results)]
    parts = [part if isinstance(part, str) else part.markdown() for part in sections(results)]
    return "\n\n".join([*loud, *parts, *loud])
