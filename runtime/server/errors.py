"""What goes wrong, as OpenAI's API tells it: a status and {"error": {message, type, param, code}}.

Source: the API reference of OpenAI, "Error codes". Its clients try 408, 409, 429 and 500 up again,
so that only what may go better the next time has one of those.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ...export.errors import (
    ClosedError,
    ContextLengthError,
    MissingExtraError,
    ModelFolderError,
    NumericsError,
    PocketLMError,
    RequestError,
    ResourceError,
)
from ...export.memory import exhausted, is_exhaustion

INVALID, SERVER = "invalid_request_error", "server_error"
RETRY_SECONDS = 2  # what a client is told to wait; OpenAI's heed 1 to 60


class ApiError(Exception):
    """An answer that is an error; ``param`` is the field of the body that it is about."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = INVALID,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """The JSON that tells it."""
        error = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return {"error": error}


def busy(message: str, status: int = 429) -> ApiError:
    """The refusal of what may well be taken a little later."""
    return ApiError(
        status,
        message,
        kind="rate_limit_error" if status == 429 else SERVER,
        code="overloaded",
        headers={"Retry-After": str(RETRY_SECONDS)},
    )


def told(error: Exception) -> ApiError:
    """``error`` as a client hears of it; of a bug of ours it hears no more than that it is one."""
    if isinstance(error, ApiError):
        return error
    if is_exhaustion(error):
        error = exhausted("memory ran out")
    message = str(error)
    match error:
        case RequestError():
            too_long = isinstance(error, ContextLengthError)
            code = "context_length_exceeded" if too_long else None
            return ApiError(400, message, param=_param(message), code=code)
        case MissingExtraError():
            return ApiError(501, message, code="not_installed")
        case ResourceError() | ClosedError():
            return busy(message, 503)
        case ModelFolderError():
            return ApiError(503, message, kind=SERVER, code="model_unavailable")
        case NumericsError():
            return ApiError(500, message, kind=SERVER, code="numerics")
        case PocketLMError():
            return ApiError(500, message, kind=SERVER)
    return ApiError(500, "this is a bug in pocketlm; the server's log says more", kind=SERVER)


def _param(message: str) -> str | None:
    """The field that a message of the engine begins with: "top_k is 0, expected …"."""
    subject = re.match(r"([a-z_]+)(\[\d+\])?(?= (is|are|has|have|was|holds) |: )", message)
    return None if subject is None else subject[1]
