"""Who may ask at all, decided before anything is routed; and a line in the log for every request.

Any web page can have a browser send requests to loopback, and with a name of its own that resolves
there (DNS rebinding) even read the answers. So a request must name us as its Host, and must not
come from a page of another origin; what is posted must say that it is JSON, which a page of another
origin cannot without asking first. Everything but what is open to all needs the key, if there is
one: whatever is served in future is closed unless it says otherwise.

Sources: the Fetch standard, "CORS protocol"; Fetch Metadata Request Headers; CVE-2024-28224
(rebinding), CVE-2026-48710 (a key that was decided on another path than what was routed).
"""

from __future__ import annotations

import hmac
import re
import time
import uuid
from collections.abc import Sequence

from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..call import Call
from ..errors import ApiError, as_api_error, ending, let_go
from ..log import path_of
from ..service import Service
from .answer_headers import with_safe
from .hosts import in_url, is_unspecified

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
# Clients of OpenAI's send some of their own; * is not taken for Authorization.
ALLOWED_HEADERS = b"authorization, content-type, *"
EXPOSED_HEADERS = b"x-request-id, retry-after"
PREFLIGHT_SECONDS = b"600"

_PLAIN_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")


class Guard:
    """An ASGI application before another one, which serves ``routes``.

    routes      each, and whether it is there for those without a key
    draining    whether the server is ending: nothing new is taken
    """

    def __init__(
        self,
        app: ASGIApp,
        service: Service,
        routes: Sequence[tuple[BaseRoute, bool]],
    ) -> None:
        self._app = app
        self._service = service
        self._settings = service.settings
        self.routes = routes
        self._hosts = {host.lower() for host in self._settings.hosts}
        self._origins = {origin.lower() for origin in self._settings.origins}
        self.draining = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        started = time.perf_counter()
        request_id = _request_id(scope)
        scope["state"]["request_id"] = request_id
        status, is_whole = 0, False
        origin: bytes | None = None

        async def noting(message: Message) -> None:
            nonlocal status, is_whole
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
                message["headers"] = with_safe([*headers, *_ending(scope), *_cors(origin)])
            elif not message.get("more_body"):
                is_whole = True
            await send(message)

        async def refuse(error: ApiError) -> None:
            call = Call(scope, receive, noting, self._service)
            await call.answer(error.body, error.status, error.headers)

        try:
            self._check_host(scope)
            origin = self._foreign_origin(scope)
            if scope["method"] == "OPTIONS" and origin is not None:
                return await _preflight(noting)
            self._check_key(scope)
            self._check_type(scope)
            self._check_length(scope)
            if self.draining:
                raise ending()
            await self._app(scope, receive, noting)
        except ApiError as error:
            await refuse(error)
        except ConnectionError:  # nobody is there to be told
            pass
        except Exception as error:
            if not status:
                self._service.log.failed(request_id, error)
                await refuse(as_api_error(error))
            let_go(error)
        finally:
            if status and not is_whole:  # it cannot be taken back: whoever reads it sees a cut
                scope["state"]["cut"]()
            self._service.metrics.request(scope["state"].get("endpoint", "none"), status)
            self._service.log.request(
                request_id,
                status,
                method=scope["method"][:20],
                path=path_of(scope),
                seconds=round(time.perf_counter() - started, 4),
            )

    def _check_host(self, scope: Scope) -> None:
        """Raises ApiError (403) unless the Host is a name of ours, with our port."""
        address, port = scope["server"]
        found = _values(scope, b"host")
        host = found[0].decode("latin-1").lower() if len(found) == 1 else ""
        hosts = [host for host in (address, self._settings.host) if not is_unspecified(host)]
        ours = {f"{name}:{port}" for name in (*LOOPBACK, *map(in_url, hosts))}
        if port == 80:
            ours |= {name.removesuffix(":80") for name in ours}
        # An operator's name without a port is good with any: ports are mapped on the way.
        asked = {host, re.sub(r":[0-9]{1,5}\Z", "", host)}
        if host not in ours and not asked & self._hosts:
            raise ApiError(
                403,
                "found a Host that is not this server's, expected the address it listens on; an "
                "operator allows another with --allow-host",
                code="host_not_allowed",
            )

    def _foreign_origin(self, scope: Scope) -> bytes | None:
        """The Origin of a page of elsewhere that may ask; None of our own, or of no page.

        Raises ApiError (403) for other pages. Those that send no Origin, for what they embed, say
        in Sec-Fetch-Site that they are of elsewhere; a link to us is one too, but shows us alone.
        """
        found = _values(scope, b"origin")
        if not found:
            site = _values(scope, b"sec-fetch-site")
            is_link = scope["method"] == "GET" and _values(scope, b"sec-fetch-mode") == [
                b"navigate"
            ]
            if site in ([], [b"same-origin"], [b"none"]) or is_link:
                return None
        elif found == [b"http://" + _values(scope, b"host")[0].lower()]:
            return None
        elif len(found) == 1 and found[0].decode("latin-1") in self._origins:
            return found[0]
        raise ApiError(
            403,
            "found a page of another origin, expected none; an operator allows one with --cors",
            code="origin_not_allowed",
        )

    def _check_key(self, scope: Scope) -> None:
        """Raises ApiError (401) for one that is needed, and missing or wrong."""
        key = self._settings.api_key
        if key is None or self._is_open(scope):
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

    def _is_open(self, scope: Scope) -> bool:
        """Whether what will be routed to is there for those without a key: asked of the routes."""
        return scope["method"] in ("GET", "HEAD") and bool(self._routed(scope))

    def _check_type(self, scope: Scope) -> None:
        """What changes anything must be JSON: a page of elsewhere may send all else unasked.

        What no route takes is told so by whoever routes.
        """
        if scope["method"] not in ("GET", "HEAD", "OPTIONS") and self._routed(scope) is not None:
            _check_is_json(scope)

    def _routed(self, scope: Scope) -> bool | None:
        """Whether the route of a request is open; None where there is none."""
        for route, is_open in self.routes:
            if route.matches(scope)[0] is Match.FULL:
                return is_open
        return None

    def _check_length(self, scope: Scope) -> None:
        """Raises ApiError (413) for a body that says it is too large, before any of it is read."""
        found = _values(scope, b"content-length")
        most = self._settings.most_body_bytes
        if found and int(found[0]) > most:
            raise ApiError(
                413,
                f"the body has {int(found[0]):,} bytes, expected at most {most:,}; shorten it",
                headers={"Connection": "close"},
            )


def _values(scope: Scope, name: bytes) -> list[bytes]:
    return [value for key, value in scope["headers"] if key == name]


def _request_id(scope: Scope) -> str:
    """The client's own, if it can stand anywhere."""
    found = _values(scope, b"x-request-id")
    if len(found) == 1 and _PLAIN_ID.fullmatch(found[0]):
        return found[0].decode("ascii")
    return uuid.uuid4().hex


def _check_is_json(scope: Scope) -> None:
    """Raises ApiError (415) for a body that is no JSON by its headers."""
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


def _ending(scope: Scope) -> list[tuple[bytes, bytes]]:
    """A body in chunks is the last of its connection: where it ends is told apart most."""
    return [(b"connection", b"close")] if _values(scope, b"transfer-encoding") else []


def _cors(origin: bytes | None) -> list[tuple[bytes, bytes]]:
    if origin is None:
        return []
    return [
        (b"access-control-allow-origin", origin),
        (b"access-control-expose-headers", EXPOSED_HEADERS),
        (b"vary", b"Origin"),
    ]


async def _preflight(send: Send) -> None:
    headers = [
        (b"access-control-allow-methods", b"GET, POST"),
        (b"access-control-allow-headers", ALLOWED_HEADERS),
        (b"access-control-max-age", PREFLIGHT_SECONDS),
    ]
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b""})
