"""The key of a server: in a file or the environment, and never an argument, which all can see."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import click

from pocketlm.export.errors import RequestError
from pocketlm.export.regular_file import RegularFile

KEY_VARIABLE = "POCKETLM_API_KEY"
LARGEST_KEY_FILE = 65_536


def find_key(file: Path | None) -> str | None:
    """The key in ``file``, or without one in the environment; None where neither is given.

    Raises RequestError for an empty one. A file that others may read is told on stderr.
    """
    if file is None:
        key = os.environ.get(KEY_VARIABLE)
        if key is not None and not key.strip():
            raise RequestError(
                f"{KEY_VARIABLE} is empty, expected a key; write one, or unset the variable"
            )
        return None if key is None else key.strip()
    with RegularFile(file, RequestError) as opened:
        data = opened.read(0, LARGEST_KEY_FILE)
    key = data.decode("latin-1").strip()  # of no other character is a key
    if not key:
        raise RequestError(f"{file} is empty, expected a key; write one into it")
    if os.name == "posix" and (mode := stat.S_IMODE(file.stat().st_mode)) & 0o077:
        click.echo(
            f"pocketlm: {file} may be read by others (mode {mode:o}), expected 600; type: "
            f"chmod 600 {file}",
            err=True,
        )
    return key
