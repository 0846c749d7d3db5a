"""What is compared of ours: names in tables, the options that export them, and the exporting.

A variant is any list of options of ``pocketlm export``, so that what that learns to do can be
measured without a change here: ``--variant "mine=--precision int4 --block-size 32"``.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from .programs import output_of

# The first is what the others are compared with.
VARIANTS: dict[str, list[str]] = {
    "fp32": ["--precision", "fp32"],
    "int8": ["--precision", "int8"],
    "int8-weight": ["--precision", "int8-weight"],
    "int4 b32": ["--precision", "int4", "--block-size", "32"],
    "int4 b64": ["--precision", "int4", "--block-size", "64"],
    "int4 b128": ["--precision", "int4", "--block-size", "128"],
    "int4 b128, int4 head": ["--precision", "int4", "--block-size", "128", "--head", "int4"],
}
REFERENCE = "fp32"
LEVELS = ("fp32", "int8", "int4")
RUN = "--"  # between options of an export and those it is run with

# The program that ``pocketlm export`` runs, with its peak memory at the end on stdout.
EXPORT = """
import sys
from pocketlm.export.memory import peak_rss_bytes
from pocketlm.cli import main
try:
    main()
finally:
    print(peak_rss_bytes())
"""


def variant(text: str) -> tuple[str, list[str]]:
    """The type of an option: a name of ``VARIANTS``, or NAME=OPTIONS of ``pocketlm export``."""
    name, separator, options = text.partition("=")
    if not separator and name in VARIANTS:
        return name, VARIANTS[name]
    try:
        found = shlex.split(options)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"found {text!r:.80}: {error}") from None
    if not name.strip() or not found:
        raise argparse.ArgumentTypeError(
            f"found {text!r:.80}, expected NAME=OPTIONS of pocketlm export, or one of "
            f"{', '.join(VARIANTS)}"
        )
    return name.strip(), found


def chosen_variants(given: Sequence[tuple[str, list[str]]] | None) -> dict[str, list[str]]:
    """The reference, then what was given, or all of ``VARIANTS``."""
    if given is None:
        return dict(VARIANTS)
    return {REFERENCE: VARIANTS[REFERENCE]} | dict(given)


def level_of(options: Sequence[str]) -> str:
    """The width of what ``options`` export: fp32, int8 or int4, which a search may end at."""
    given = dict(zip(options, options[1:], strict=False)).get("--precision", "")
    return next((width for width in LEVELS if given.startswith(width)), LEVELS[-1])


def export_variant(checkpoint: str | Path, out: Path, options: Sequence[str]) -> int:
    """Exports through the command line in a process of its own; its peak resident bytes.

    Raises ChildError with what that says where it fails.
    """
    command = ["export", str(checkpoint), str(out), "--quiet", *options]
    return int(output_of("-c", EXPORT, *command))


def export_options(options: Sequence[str]) -> list[str]:
    """Of those of a variant that is run as well: what stands before "--"."""
    return list(options[: options.index(RUN)]) if RUN in options else list(options)


def run_options(spelled: str) -> list[str]:
    """What stands after "--" in ``spelled``: options of ``pocketlm run``."""
    options = shlex.split(spelled)
    return options[options.index(RUN) + 1 :] if RUN in options else []


def spelled(options: Sequence[str]) -> str:
    """Options as one word that ``shlex`` splits again."""
    return shlex.join(options)
