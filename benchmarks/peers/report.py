"""One HTML file of a comparison with other runtimes: charts of what is lost, and the table."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from ...export.errors import PocketLMError
from ...export.output_file import OutputFile
from ..html.inline_svg import require_matplotlib
from ..programs import given_path
from ..report import filled


def report_file(path: str) -> OutputFile:
    """The type of an option: a new file, or a report of this kind, which is replaced."""
    try:
        require_matplotlib()
        return OutputFile(given_path(path), _is_report)
    except PocketLMError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _is_report(data: bytes) -> bool:
    return " – pocketlm peers</title>\n<style>".encode() in data


def html(results: Sequence[dict[str, Any]]) -> str:
    """The page as text, a section for each checkpoint. The same results give the same page."""
    from ..html.runtimes import page

    return filled("runtimes.html", page(results))
