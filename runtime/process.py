"""A model lives in the process that opened it: a fork of that has none of its threads."""

from __future__ import annotations

import os
from weakref import WeakSet

from ..export.errors import PocketLMError

_opened: WeakSet[object] = WeakSet()  # graphs of ONNX Runtime


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


def keep_in_forks(engine: object) -> None:
    """Has a fork never free ``engine``: to do so waits for threads that it does not have.

    So a fork may forget a model, and end, as any other process.
    """
    _opened.add(engine)


def _keep() -> None:
    import ctypes

    for engine in _opened:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(engine))  # also beyond the end of the module


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_keep)
