"""Options that several verbs share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from pocketlm.quantize.precisions import BLOCK_SIZES, HEADS


def precision_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """--block-size and --head."""
    for option in (
        click.option(
            "--head",
            type=click.Choice(HEADS),
            help="Format of embedding and output head. Default: int8.",
        ),
        click.option(
            "--block-size",
            type=click.Choice(BLOCK_SIZES),
            help="Weights that share one scale: smaller is closer to fp32, larger is faster. "
            "Default: 128 (int8-weight: 64).",
        ),
    ):
        function = option(function)
    return function


def writing_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """--force, --quiet and --debug."""
    for option in (
        click.option("--debug", is_flag=True, help="Show the traceback of an error."),
        click.option("--quiet", is_flag=True, help="Print neither plan, progress nor report."),
        click.option("--force", is_flag=True, help="Replace OUT if it is a model folder."),
    ):
        function = option(function)
    return function
