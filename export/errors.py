"""Errors a caller may want to tell apart; each says what was found, expected, and what to do.

The command line turns each into one line on stderr and the class's ``exit_code``.
Lean on purpose: the runtime imports this module in an environment without any extra.
"""

from __future__ import annotations

from .frozen import is_frozen


class PocketLMError(Exception):
    """Base of every error pocketlm raises on purpose."""

    exit_code = 2


class CheckpointError(PocketLMError):
    """A checkpoint is missing or damaged, contradicts its config, or asks for what we lack."""


class ModelFolderError(PocketLMError):
    """A model folder is incomplete, was changed after it was written, or is not ours."""


class RequestError(PocketLMError, ValueError):
    """An argument of a call is outside its range; nothing was run."""


SLIDE = ', or set context to "slide"'


class ContextLengthError(RequestError):
    """A text has more tokens than the model can attend to.

    plain    the message without what only some callers may ask for
    slides   whether the text would be taken where the context may slide
    """

    def __init__(self, plain: str, *, slides: bool = False) -> None:
        super().__init__(plain + SLIDE if slides else plain)
        self.plain = plain
        self.slides = slides


class ProviderError(PocketLMError):
    """The processor asked for cannot be used here."""


class NumericsError(PocketLMError):
    """The model produced NaN or infinite logits."""

    exit_code = 1


class StorageError(PocketLMError):
    """The disk is full or a file cannot be written; nothing was published."""

    exit_code = 4


class ResourceError(PocketLMError):
    """Memory ran out; what was under way is undone, and what was opened before stays usable."""

    exit_code = 4


class ClosedError(PocketLMError, RuntimeError):
    """A model was closed, before the call or while it was under way; what it held is freed."""


class HubError(PocketLMError):
    """The hub cannot be reached, refuses, or sent something else than it listed; or we are offline.

    Nothing half-downloaded is visible, and the same call goes on where this one ended.
    """

    exit_code = 3


class MissingExtraError(PocketLMError, ImportError):
    """A dependency is not installed, or only in part; the message has the install command."""


def missing_extra(extra: str, purpose: str, cause: ImportError) -> MissingExtraError:
    """Builds the error for a failed import of a package that ``extra`` would have brought."""
    package = (cause.name or "").partition(".")[0]
    if is_frozen():
        return MissingExtraError(
            f"{purpose} needs the package {package!r}, which this application was made without; "
            f'whoever makes it has to write "import {package}" in its program and freeze it again '
            f'where it is installed: pip install "pocketlm[{extra}]"'
        )
    return MissingExtraError(
        f"{purpose} needs the package {cause.name!r}, which is not installed; "
        f'install it with: pip install "pocketlm[{extra}]"'
    )
