"""Importing what others made, whole, or an error that says what to install.

A package that was removed in part may still be imported: of its folder Python makes an empty
package. A Ctrl-C waits until an import has ended: C extensions make an ImportError of it, and leave
NumPy in a state in which no import of it succeeds any more. Lean: for the runtime.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from .errors import MissingExtraError, PocketLMError, missing_extra
from .frozen import to_install
from .interrupts import interrupts_held
from .memory import exhausted, is_exhaustion

# In every installation, so that no extra brings them.
LEAN = ("numpy", "tokenizers")
# Those whose folder is looked at: they are imported well when it is empty, and fail when used.
LOOKED_AT = (*LEAN, "onnx_ir", "ml_dtypes")


@contextmanager
def importing(purpose: str, extra: str) -> Iterator[None]:
    """For import statements: an interrupt waits for their end, and what fails is told.

    ``purpose`` needs them, and ``extra`` brings those of them that are not in every installation.
    Raises MissingExtraError, or ResourceError where memory ran out; what fails in pocketlm itself
    passes.
    """
    try:
        with interrupts_held():
            yield
    except PocketLMError:
        raise
    except Exception as error:
        if (told := import_failure(error, purpose, extra)) is None:
            raise
        raise told from error
    if empty := _empty_folder():
        raise _not_whole(empty, purpose, f"only a part of {empty} (an empty folder)")


def import_failure(error: Exception, purpose: str, extra: str) -> PocketLMError | None:
    """What is to be said of an import that failed; None if it is not another's package."""
    if any(is_exhaustion(found) for found in _chain(error)):
        return exhausted(f"importing what {purpose} needs")
    if empty := _empty_folder():
        return _not_whole(empty, purpose, f"only a part of {empty} (an empty folder)")
    package = next((name for found in _chain(error) if (name := _package(found))), None)
    if package is None:
        return None
    if not _is_missing(package, error):
        return _not_whole(package, purpose, f"only a part of {package} ({first_line(error)})")
    if package in LEAN:
        return _not_whole(package, purpose, f"no package {package}")
    return missing_extra(extra, purpose, ModuleNotFoundError(name=package))


def first_line(error: object) -> str:
    """NumPy's explanations have many."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), repr(error))


def _chain(error: BaseException | None) -> Iterator[Exception]:
    """An error and those that it was made of."""
    while isinstance(error, Exception):
        yield error
        error = error.__cause__ or error.__context__


def _package(error: Exception) -> str | None:
    """The package, none of ours, that is not there or lacks what was asked of it."""
    name = error.name if isinstance(error, ImportError) else None
    if isinstance(error, AttributeError) and isinstance(error.obj, ModuleType):
        name = error.obj.__name__
    package = (name or "").partition(".")[0]
    return package if package not in ("", "pocketlm") else None


def _empty_folder() -> str | None:
    """What was imported is what Python makes of a folder without ``__init__.py``."""
    for name in LOOKED_AT:
        module = sys.modules.get(name)
        if hasattr(module, "__path__") and getattr(module, "__file__", None) is None:
            return name
    return None


def _is_missing(package: str, error: Exception) -> bool:
    """Whether nothing of it is there."""
    if not isinstance(error, ModuleNotFoundError):
        return False
    return error.name == package or sys.modules.get(package) is None


def _not_whole(package: str, purpose: str, found: str) -> MissingExtraError:
    return MissingExtraError(
        f"{purpose}: found {found}, expected the whole of it; "
        + to_install(f"pip install --force-reinstall {package.replace('_', '-')}")
    )
