"""What goes wrong, as OpenAI's API tells it: a status and {"error": {message, type, param, code}}.

Source: the API reference of OpenAI, "Error codes". Its clients try 408, 409, 429 and 500 up again,
so that only what may go better the next time has one of those; where another is due, a header keeps
them from it. No path of this machine is ever told.
"""

from __future__ import annotations

import re
import traceback
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
MOST_PARAM = 100  # characters
TOO_LONG = "context_length_exceeded"
NO_RETRY = {"x-should-retry": "false"}  # which OpenAI's heed too

# Where a message of the engine says which field is wrong.
_SUBJECTS = (
    r"([a-z_]+)(?:\[\d+\])?(?= (?:is|are|has|have|was|holds) |: )",
    r"token id -?\d+ is in ([a-z_]+),",
    r"found ([a-z_]+) and [a-z_]+, expected one of them",
)
_PATH = re.compile(r"(?<![\w.:/\\])(?:[A-Za-z]:\\|~?/)[^\s:;,'\"]+")


class ApiError(Exception):
    """An answer that is an error.

    param   the field of the body that it is about
    note    what the log has of it beside; nothing of a request
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = INVALID,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
        note: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.param = param if param is None else param[:MOST_PARAM]
        self.code = code
        self.headers = dict(headers or {})
        self.note = note

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


def ending() -> ApiError:
    """The refusal of a server that was told to end, whose connections end with it."""
    error = busy("the server is ending; try again later", 503)
    error.headers["Connection"] = "close"
    return error


def unopened(name: str, error: Exception) -> ApiError:
    """Of a model that cannot be opened; why is the operator's business, and in the log."""
    if isinstance(error, ResourceError) or is_exhaustion(error):
        return busy(f"the memory does not suffice for the model {name}; try again later", 503)
    return ApiError(
        503,
        f"the model {name} cannot be opened, expected it to; the server's log says why",
        kind=SERVER,
        param="model",
        code="model_unavailable",
        headers=NO_RETRY,
        note=str(error),
    )


def without_paths(error: PocketLMError, names: Mapping[str, str]) -> ApiError:
    """As ``told``, with the name of each model in place of the path of its folder."""
    answer = told(error)
    for path in sorted(names, key=len, reverse=True):
        whole = rf"(?<![^\s('\"]){re.escape(path)}(?=[\s:,;)'\"]|\Z)"
        answer.message = re.sub(whole, names[path].replace("\\", r"\\"), answer.message)
    return answer


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
            code = TOO_LONG if too_long else None
            return ApiError(400, message, param=_param(message), code=code)
        case MissingExtraError():
            return _hopeless(501, message, "not_installed")
        case ResourceError() | ClosedError():
            return busy(_without_path(message), 503)
        case ModelFolderError():
            return _hopeless(503, message, "model_unavailable")
        case NumericsError():
            return _hopeless(500, message, "numerics")
        case PocketLMError():
            return _hopeless(500, message)
    return _hopeless(500, "this is a bug in pocketlm; the server's log says more")


def let_go(error: BaseException | None) -> None:
    """Has the functions that ``error``, and what it came from, went through hold nothing any more.

    One of them mostly holds the error, and so itself: what it holds beside, a body perhaps, would
    stay until Python looks for such circles, which is seldom.
    """
    if error is not None and error.__traceback__ is not None:
        traceback.clear_frames(error.__traceback__)
        error.__traceback__ = None
        let_go(error.__context__)
        let_go(error.__cause__)


def _hopeless(status: int, message: str, code: str | None = None) -> ApiError:
    """What does not get better when it is asked for again."""
    return ApiError(status, _without_path(message), kind=SERVER, code=code, headers=NO_RETRY)


def _without_path(message: str) -> str:
    """Of a message that quotes nothing of a request."""
    return _PATH.sub("a file", message)


def _param(message: str) -> str | None:
    """The field that a message of the engine names first: "top_k is 0, expected …"."""
    found = (re.match(pattern, message) for pattern in _SUBJECTS)
    return next((subject[1] for subject in found if subject is not None), None)
