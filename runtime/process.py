"""A model lives in the process that opened it: a fork of that has none of its threads."""

from __future__ import annotations

import os

from ..export.errors import PocketLMError


def check_process(opened_in: int) -> None:
    """Raises PocketLMError in any other process than ``opened_in``, the id of the model's.

    Asked before any lock, and before any other thread is waited for: in a fork a thread that is
    not there may hold the one, and is the other.
    """
    if os.getpid() != opened_in:
        raise PocketLMError(
            f"this model was loaded by process {opened_in}, found a fork of it ({os.getpid()}); "
            "load the model in the process that uses it"
        )
