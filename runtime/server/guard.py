"""Who may ask at all, decided before anything is routed; and a line in the log for every request.

Any web page can have a browser send requests to loopback, and with a name of its own that resolves
there (DNS rebinding) even read the answers. So a request must name us as its Host, and must not
come from a page of another origin; what is posted must say that it is JSON, which a page of another
origin cannot without asking first. Everything but what is open to all needs the key, if there is
one: whatever is served in future is closed unless it says otherwise.

Sources: the Fetch standard, "CORS protocol"; CVE-2024-28224 (rebinding).
"""

from __future__ import annotations

import hmac
import time
import uuid
from collections.abc import Collection

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .call import Call
from .errors import ApiError, ending
from .service import Service

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
ALLOWED_HEADERS = b"authorization, content-type"
PREFLIGHT_SECONDS = b"600"


class Guard:
    """An ASGI application before another one.

    draining    whether the server is ending: nothing new is taken
    """

    def __init__(self, app: ASGIApp, service: Service, open_paths: Collection[str]) -> None:
        self._app = app
        self._service = service
        self._settings = service.settings
        self._open_paths = frozenset(open_paths)
        self.draining = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        started = time.perf_counter()
        request_id = uuid.uuid4().hex
        scope["state"]["request_id"] = request_id
        status = 0
        origin: bytes | None = None

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"x-request-id", request_id.encode()),
                    (b"x-content-type-options", b"nosniff"),
                    *self._cors(origin),
                ]
            await send(message)

        try:
            self._check_host(scope)
            origin = self._foreign_origin(scope)
            if scope["method"] == "OPTIONS" and origin is not None:
                return await _preflight(noting)
            self._check_key(scope)
            _check_type(scope)
            if self.draining:
                raise ending()
            await self._app(scope, receive, noting)
        except ApiError as error:
            call = Call(scope, receive, noting, self._service)
            await call.answer(error.body, error.status, error.headers)
        finally:
            self._service.metrics.request(scope["state"].get("endpoint", "none"), status)
            self._service.log.request(
                request_id,
                status,
                method=scope["method"],
                path=scope["path"][:200],
                seconds=round(time.perf_counter() - started, 4),
            )

    def _check_host(self, scope: Scope) -> None:
        found = _values(scope, b"host")
        host = found[0].decode("latin-1").lower() if len(found) == 1 else ""
        name, _, port = host.rpartition(":") if not host.endswith("]") else (host, "", "")
        if not name:
            name, port = host, ""
        known = {*LOOPBACK, _in_url(self._settings.host)}
        ours = name in known and port in (str(scope["server"][1]), "" if _is_80(scope) else None)
        if not ours and not {host, name} & set(self._settings.hosts):
            raise ApiError(
                403,
                "found a Host that is not this server's, expected the address it listens on; an "
                "operator allows another with --allow-host",
                code="host_not_allowed",
            )

    def _foreign_origin(self, scope: Scope) -> bytes | None:
        """The Origin of a page of elsewhere that may ask; None of our own, or of no page."""
        found = _values(scope, b"origin")
        own = b"http://" + _values(scope, b"host")[0].lower()
        if not found or found == [own]:
            return None
        if len(found) == 1 and found[0].decode("latin-1") in self._settings.origins:
            return found[0]
        raise ApiError(
            403,
            "found a page of another origin, expected none; an operator allows one with --cors",
            code="origin_not_allowed",
        )

    def _check_key(self, scope: Scope) -> None:
        key = self._settings.api_key
        if key is None or (
            scope["path"] in self._open_paths and scope["method"] in ("GET", "HEAD")
        ):
            return
        found = _values(scope, b"authorization")
        kind, _, shown = found[0].partition(b" ") if len(found) == 1 else (b"", b"", b"")
        right = hmac.compare_digest(shown.strip(), key.encode())
        if kind.lower() != b"bearer" or not right:
            raise ApiError(
                401,
                "found no valid key, expected the header Authorization: Bearer KEY",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    def _cors(self, origin: bytes | None) -> list[tuple[bytes, bytes]]:
        if origin is None:
            return []
        return [(b"access-control-allow-origin", origin), (b"vary", b"Origin")]


def _values(scope: Scope, name: bytes) -> list[bytes]:
    return [value for key, value in scope["headers"] if key == name]


def _in_url(host: str) -> str:
    """An address as a URL has it."""
    return f"[{host}]" if ":" in host else host.lower()


def _is_80(scope: Scope) -> bool:
    return bool(scope["server"][1] == 80)


def _check_type(scope: Scope) -> None:
    """What is posted must be JSON: a page of another origin may post anything else unasked."""
    if scope["method"] in ("GET", "HEAD", "OPTIONS"):
        return
    found = _values(scope, b"content-type")
    kind = found[0].partition(b";")[0].strip().lower() if len(found) == 1 else b""
    if kind != b"application/json":
        raise ApiError(
            415,
            "found another Content-Type, expected application/json; set that header",
            code="unsupported_content_type",
        )
    if _values(scope, b"content-encoding") not in ([], [b"identity"]):
        raise ApiError(415, "found a Content-Encoding, expected none; send it uncompressed")


async def _preflight(send: Send) -> None:
    headers = [
        (b"access-control-allow-methods", b"GET, POST"),
        (b"access-control-allow-headers", ALLOWED_HEADERS),
        (b"access-control-max-age", PREFLIGHT_SECONDS),
    ]
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b""})
