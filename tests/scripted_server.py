"""A server on loopback that says what a test has written down, and remembers what it was asked."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

EVENTS = "text/event-stream"


@dataclass(frozen=True)
class Reply:
    """An answer: JSON, or bytes that are sent part by part.

    cut     breaks off after them
    stalls  says no more after them, until the client leaves
    silent  says nothing at all until then
    """

    body: Any = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: bool = False
    stalls: bool = False
    silent: bool = False

    @property
    def parts(self) -> Sequence[bytes]:
        """What is sent, each as a chunk."""
        if isinstance(self.body, bytes):
            return [self.body]
        if isinstance(self.body, list):
            return self.body
        return [json.dumps(self.body).encode()]


@dataclass
class Asked:
    """A request."""

    path: str
    headers: dict[str, str]
    body: Any


@dataclass
class Scripted:
    """A server that runs: where, and what it was asked so far."""

    url: str
    asked: list[Asked]
    left: threading.Semaphore  # released for every client that has left one that waits


@contextmanager
def scripted(replies: Mapping[str, Reply], certificate: Path | None = None) -> Iterator[Scripted]:
    """Answers each path with its reply, another with 404, until the block ends.

    With a ``certificate``, and its key in the same file, it does so over TLS.
    """
    asked: list[Asked] = []
    left = threading.Semaphore(0)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(None)

        def do_POST(self) -> None:
            self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def _answer(self, body: Any) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            asked.append(Asked(self.path, headers, body))
            reply = replies.get(self.path, Reply({"error": {"message": "no such path"}}, 404))
            if reply.silent:
                self._wait()
                return
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for part in reply.parts:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
                self.wfile.flush()
            self.close_connection = True
            if reply.stalls:
                self._wait()
            elif not reply.cut:
                self.wfile.write(b"0\r\n\r\n")

        def _wait(self) -> None:
            self.close_connection = True
            self.rfile.read(1)
            left.release()

        def log_message(self, *_: Any) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            """A client that has heard enough and gone."""

    server = Quiet(("127.0.0.1", 0), Handler)
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    scheme = "http" if certificate is None else "https"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield Scripted(f"{scheme}://127.0.0.1:{server.server_port}", asked, left)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
