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

# Where a message of the engine says which field is wrong: "tools[0].type is 5, expected …".
_FIELD = r"([a-z_]+(?:\[\d+\]|\.[a-z_]+)*)"
_SUBJECTS = (
    rf"{_FIELD}(?= (?:is|are|has|have|was|holds) |: )",
    r"token id -?\d+ is in ([a-z_]+),",
    rf"found .+ for {_FIELD} in the body",
    rf"found no {_FIELD} in the body",
    rf"found {_FIELD} (?:and |with |without |.+ in the body)",
)
# What the engine calls otherwise than a body does.
_NAMED_HERE = {"template_args": "chat_template_kwargs"}
_PATH = re.compile(r"(?<![\w.:/\\])(?:[A-Za-z]:\\|~?/)[^\s:;,'\"]+")


class ApiError(Exception):
    """An answer that is an error.

    param   the field of the body that it is about
    note    what the log has of it beside; nothing of a request
    slides  whether the text would be taken where the context may slide, if that is a field
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
        slides: bool = False,
    ) -> None:
        super().__init__()
        self.status = status
        self.message = message
        self.kind = kind
        self.param = param if param is None else param[:MOST_PARAM]
        self.code = code
        self.headers = dict(headers or {})
        self.note = note
        self.slides = slides

    def __str__(self) -> str:
        return self.message  # which may be reworded on its way

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


def as_api_error(error: Exception, names: Mapping[str, str] | None = None) -> ApiError:
    """``error`` as a client hears of it; of a bug of ours it hears no more than that it is one.

    ``names`` of models stand in place of the paths of their folders.
    """
    if isinstance(error, ApiError):
        error.message = _with_names(error.message, names or {})
        return error
    if is_exhaustion(error):
        error = exhausted("memory ran out")
    message, param = str(error), None
    if isinstance(error, RequestError):
        plain = error.plain if isinstance(error, ContextLengthError) else message
        message, param = _as_in_body(plain)
    message = _with_names(message, names or {})
    match error:
        case ContextLengthError():
            return ApiError(400, message, param=param, code=TOO_LONG, slides=error.slides)
        case RequestError():
            return ApiError(400, message, param=param)
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


def _with_names(message: str, names: Mapping[str, str]) -> str:
    for path in sorted(names, key=len, reverse=True):
        whole = rf"(?<![^\s('\"]){re.escape(path)}(?=[\s:,;)'\"/\\]|\Z)"
        message = re.sub(whole, names[path].replace("\\", r"\\"), message)
    return message


def _without_path(message: str) -> str:
    """Of a message that quotes nothing of a request."""
    return _PATH.sub("a file", message)


def _as_in_body(message: str) -> tuple[str, str | None]:
    """A message of the engine with the field that it names first as a body names it; and that."""
    found = next(filter(None, (re.match(pattern, message) for pattern in _SUBJECTS)), None)
    if found is None:
        return message, None
    field = re.sub(r"^[a-z_]+", lambda name: _NAMED_HERE.get(name[0], name[0]), found[1])
    return message[: found.start(1)] + field + message[found.end(1) :], field
