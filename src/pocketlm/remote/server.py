"""A server with OpenAI's API: requests go out, answers come back whole or as events.

What it refuses becomes an error of ours with its words.
"""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from http.client import HTTPConnection, HTTPException, HTTPResponse, IncompleteRead
from typing import Any, TypeVar

from pocketlm.export.errors import PocketLMError, RequestError
from pocketlm.remote.address import Address
from pocketlm.remote.events import data_of_events
from pocketlm.runtime.openai_form import OPTIONS

CONNECT_SECONDS = 10.0
LIST_SECONDS = 30.0  # for what takes no computing; that may take as long as it takes
MOST_BYTES = 256_000_000  # of an answer that comes whole
CHUNK_BYTES = 1 << 16
LIST = "/v1/models"
DONE = "[DONE]"
# What OpenSSL finds where the other side does not speak TLS; the second from 3.2 on.
NO_TLS = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE")
CUT = "the answer ended before its end"
OURS = "pocketlm"  # who owns a model, as a server of ours says

Got = TypeVar("Got")


class ServerError(PocketLMError):
    """A server cannot be reached, is busy or fails, or sent something else than an answer."""

    exit_code = 3


class Server:
    """What is at an address; ``key`` is shown to it."""

    def __init__(self, address: Address, key: str | None = None) -> None:
        self.address = address
        self._key = key

    def __str__(self) -> str:
        return str(self.address)

    @cached_property
    def _models(self) -> list[Mapping[str, Any]]:
        answer = self.ask("GET", LIST, seconds=LIST_SECONDS)
        data = answer.whole().get("data")
        if not isinstance(data, list) or not all(isinstance(one, Mapping) for one in data):
            raise answer.unknown("a list of models")
        return data

    @property
    def names(self) -> list[str]:
        """The models that it says it has."""
        return [str(model.get("id")) for model in self._models]

    @property
    def is_ours(self) -> bool:
        """Whether it is ``pocketlm serve``."""
        return any(model.get("owned_by") == OURS for model in self._models)

    def told_of(self, name: str) -> Mapping[str, Any]:
        """What its list says of a model; {} for one that is not in it."""
        return next((model for model in self._models if model.get("id") == name), {})

    def ask(self, method: str, path: str, body: Any = None, seconds: float | None = None) -> Answer:
        """The answer, once it begins.

        Raises RequestError for what is asked wrongly, ServerError for what the server fails with.
        """
        connection = self.address.connection(CONNECT_SECONDS)
        try:
            self._reached(connection.connect)
            sock = connection.sock  # which the connection may give up before the answer is read
            response = self._reached(lambda: self._sent(connection, method, path, body, seconds))
            if path == LIST and response.status in (404, 405):
                raise RequestError(
                    f"server: found no list of models at {self}{path} (status {response.status}), "
                    "expected one wherever OpenAI's API is; correct the address"
                )
            answer = Answer(self, connection, sock, response)
            if response.status != 200:
                raise answer.refused()
        except BaseException:
            connection.close()
            raise
        return answer

    def _sent(
        self,
        connection: HTTPConnection,
        method: str,
        path: str,
        body: Any,
        seconds: float | None,
    ) -> HTTPResponse:
        connection.sock.settimeout(seconds)
        headers = {} if self._key is None else {"Authorization": f"Bearer {self._key}"}
        data = None
        if body is not None:
            data = json.dumps(body).encode("ascii")
            headers["Content-Type"] = "application/json"
        try:
            connection.request(method, self.address.path + path, data, headers)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it may have refused before all was sent, and said so
        return connection.getresponse()

    def _reached(self, send: Callable[[], Got]) -> Got:
        try:
            return send()
        except (OSError, HTTPException) as error:
            if isinstance(error, ssl.SSLError) and error.reason in NO_TLS:
                plain = replace(self.address, scheme="http")
                raise ServerError(
                    f"{self}: found no TLS, expected it behind https; try {plain}"
                ) from error
            raise ServerError(
                f"{self}: found no server that answers ({_shown(error)}), expected one that "
                "listens there; correct the address, or start one with: pocketlm serve"
            ) from error


class Answer:
    """What a server says to one request."""

    def __init__(
        self,
        server: Server,
        connection: HTTPConnection,
        sock: socket.socket,
        response: HTTPResponse,
    ) -> None:
        self._server = server
        self._connection = connection
        self._socket = sock
        self._response = response

    def close(self) -> None:
        """Reads no further: the server notices, and ends what it was computing."""
        self._response.close()
        self._connection.close()

    def cut(self) -> None:
        """Has it end here, also for whoever waits for more, as the handler of a signal finds it."""
        with contextlib.suppress(OSError):  # it has ended
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)  # TLS says no good-bye

    def whole(self) -> Any:
        """Its JSON, an object."""
        try:
            return self._object(self._read(MOST_BYTES))
        finally:
            self.close()

    def events(self) -> Iterator[Any]:
        """The JSON of each event, until [DONE]; raises what an event says that went wrong."""
        try:
            for data in data_of_events(self._chunks()):
                if data == DONE:
                    return
                found = self._object(data)
                if "error" in found:
                    raise self._error(found, None)
                yield found
        except ValueError as error:
            if isinstance(error, PocketLMError):
                raise
            raise self.unknown("events") from error
        finally:
            self.close()
        raise self._broken(CUT)

    def _chunks(self) -> Iterator[bytes]:
        while chunk := self._part(CHUNK_BYTES):
            yield chunk

    def _part(self, size: int) -> bytes:
        """What is there of the next ``size`` bytes, b"" at the end."""
        try:
            return self._response.read1(size)
        except (OSError, HTTPException) as error:
            raise self._broken(_shown(error)) from error

    def _read(self, most: int) -> bytes:
        data = bytearray()
        while len(data) < most and (chunk := self._part(CHUNK_BYTES)):
            data += chunk
        return bytes(data)

    def _broken(self, what: str) -> ServerError:
        return ServerError(
            f"{self._server}: the connection broke ({what}), expected the whole answer; try again"
        )

    def _object(self, data: str | bytes) -> Any:
        try:
            found = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise self.unknown("JSON") from error
        if not isinstance(found, dict):
            raise self.unknown("an object")
        return found

    def unknown(self, expected: str) -> ServerError:
        """It is not in OpenAI's form."""
        return ServerError(
            f"{self._server}: found an answer that is not one of OpenAI's API, expected "
            f"{expected}; is it the address of such a server?"
        )

    def refused(self) -> PocketLMError:
        """Why it is no answer but a refusal."""
        response = self._response
        if 300 <= response.status < 400:
            place = response.getheader("Location", "elsewhere")[:200]
            return RequestError(
                f"server: {self._server} sends one to {place}, expected the server itself; give "
                "that address"
            )
        try:
            found = json.loads(self._read(MOST_BYTES))
        except (ValueError, RecursionError):
            found = None
        return self._error(found, response.status)

    def _error(self, found: Any, status: int | None) -> PocketLMError:
        """Of an error in OpenAI's form, or none; ``status`` is None within a stream."""
        told = found.get("error") if isinstance(found, dict) else None
        told = told if isinstance(told, dict) else {"message": told}
        message = told.get("message")
        if not isinstance(message, str) or not message:
            message = f"found the status {status} {self._response.reason}, expected an answer"
        message = message[:2000]
        if status is None:
            asked_wrongly = told.get("type") == "invalid_request_error"
        else:
            asked_wrongly = 400 <= status < 500 and status not in (408, 425, 429)
        if status == 401:
            message += "; the option --api-key-file says where your key is"
        if asked_wrongly:
            field = told.get("param")
            if isinstance(field, str) and field in OPTIONS and field not in message:
                message = f"{field}: {message}"
            # As the engine says it, the option that is wrong first.
            return RequestError(message if told.get("type") else f"{self._server}: {message}")
        if status in (429, 503) and "try again" not in message:
            message += "; try again later"
        if seconds := self._response.getheader("Retry-After", "")[:20]:
            message += f" (it says: in {seconds} seconds)" if seconds.isdecimal() else ""
        return ServerError(f"{self._server}: {message}")


def _shown(error: BaseException) -> str:
    if isinstance(error, IncompleteRead):
        return CUT
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
