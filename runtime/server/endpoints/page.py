"""/: the page, and the files it is made of.

They are read when this is imported, each has an endpoint of its own, and nothing that is asked for
ever names a file. What the page may do is said in its headers: it loads nothing from elsewhere,
talks to nobody else, runs no script or style that is written into it, and is in nobody's frame.
Sources: Content Security Policy Level 3; RFC 9110, section 13.1.2 (If-None-Match).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import partial
from importlib import resources

from ..call import Call
from ..endpoint import Endpoint

FOLDER = "page"
FIRST = "index.html"
TYPES = {
    "css": "text/css; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
POLICY = (
    "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "object-src 'none'"
)
HEADERS = {
    "Cache-Control": "no-cache",  # asked for again each time, and sent again only if it is another
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
}


def _read() -> Mapping[str, bytes]:
    """The files by their names."""
    folder = resources.files(__package__.rpartition(".")[0]) / FOLDER
    return {
        entry.name: entry.read_bytes()
        for entry in sorted(folder.iterdir(), key=lambda entry: entry.name)
        if entry.name.rpartition(".")[2] in TYPES
    }


async def _send(data: bytes, content_type: str, etag: str, call: Call) -> None:
    known = [value for name, value in call.scope["headers"] if name == b"if-none-match"]
    headers = {**HEADERS, "ETag": etag}
    if etag in b",".join(known).decode("latin-1"):
        pairs = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        await call.send({"type": "http.response.start", "status": 304, "headers": pairs})
        await call.send({"type": "http.response.body", "body": b""})
        return
    await call.answer_bytes(data, content_type.encode(), headers=headers)


def _endpoint(name: str, data: bytes) -> Endpoint:
    etag = f'"{hashlib.sha256(data).hexdigest()[:32]}"'
    path = "/" if name == FIRST else f"/{FOLDER}/{name}"
    send = partial(_send, data, TYPES[name.rpartition(".")[2]], etag)
    # Open to those without a key, for which the page asks: there is nothing secret in it.
    return Endpoint("GET", path, send, "The page.", is_open=True)


ENDPOINTS = [_endpoint(name, data) for name, data in _read().items()]
