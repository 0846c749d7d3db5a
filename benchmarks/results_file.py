"""The file of an option ``--json``: looked at before the measuring, written after it."""

from __future__ import annotations

import argparse
import json
from typing import Any

from ..export.errors import PocketLMError, RequestError
from ..export.output_file import OutputFile
from .programs import given_path


def results_file(path: str) -> OutputFile:
    """The type of the option: a new file, or one with results of ours, which is replaced."""
    try:
        return OutputFile(given_path(path), is_results)
    except RequestError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def is_results(data: bytes) -> bool:
    """Whether a file holds what a benchmark of ours measured, once or several times."""
    try:
        found = json.loads(data)
        several = found if isinstance(found, list) else [found]
        return bool(several) and all("pocketlm" in one["circumstances"] for one in several)
    except (ValueError, TypeError, KeyError, RecursionError):
        return False


def as_json(results: Any) -> bytes:
    """What is written."""
    return (json.dumps(results, indent=1) + "\n").encode()


def write_results(results: Any, file: OutputFile | None) -> None:
    """For a script without other errors of ours: SystemExit where the file cannot be written."""
    if file is not None:
        try:
            file.write(as_json(results))
        except PocketLMError as error:
            raise SystemExit(str(error)) from None
