"""The key of a server: in a file or the environment, and never an argument, which all can see."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

import click

from pocketlm.export.errors import RequestError
from pocketlm.export.regular_file import RegularFile

KEY_VARIABLE = "POCKETLM_API_KEY"
LARGEST_KEY_FILE = 65_536
KEY = re.compile(r"[!-~]+")  # what fits in a header


def find_key(file: Path | None) -> str | None:
    """The key in ``file``, or without one in the environment; None where neither is given.

    Raises RequestError for an empty one, and for one that does not fit in a header. A file that
    others may read is told on stderr.
    """
    if file is None:
        found = os.environ.get(KEY_VARIABLE)
        return None if found is None else _checked(found, KEY_VARIABLE, "or unset the variable")
    with RegularFile(file, RequestError) as opened:
        data = opened.read(0, LARGEST_KEY_FILE)
    key = _checked(data.decode("latin-1"), str(file), "or leave the option out")
    if os.name == "posix" and (mode := stat.S_IMODE(file.stat().st_mode)) & 0o077:
        click.echo(
            f"pocketlm: {file} may be read by others (mode {mode:o}), expected 600; type: "
            f"chmod 600 {file}",
            err=True,
        )
    return key


def _checked(text: str, where: str, otherwise: str) -> str:
    key = text.strip()
    if not key:
        raise RequestError(f"{where} is empty, expected a key; write one there, {otherwise}")
    if not KEY.fullmatch(key):
        raise RequestError(
            f"{where} has other characters than visible ASCII, expected a key, one line of them; "
            f"write one there, {otherwise}"
        )
    return key
