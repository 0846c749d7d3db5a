"""A server in a thread of the tests, on a free port of loopback."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.client import HTTPConnection, HTTPResponse
from io import StringIO
from typing import Any

import pocketlm
from pocketlm.export.folder import ModelFolder
from pocketlm.runtime.model import Model
from pocketlm.runtime.server.connections.listening import Server, bound
from pocketlm.runtime.server.log import Log
from pocketlm.runtime.server.models.pool import Source
from pocketlm.runtime.server.service import Service, make_service
from pocketlm.runtime.server.settings import Settings

JSON = {"Content-Type": "application/json"}


@dataclass
class Served:
    """A server that runs.

    port        where, on 127.0.0.1
    written     what it wrote into its log so far
    """

    server: Server
    service: Service
    written: StringIO

    @property
    def port(self) -> int:
        return self.server.address[1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def events(self) -> list[dict[str, Any]]:
        """The lines of its log."""
        return [json.loads(line) for line in self.written.getvalue().splitlines()]

    def send(
        self, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> tuple[HTTPResponse, bytes]:
        """The answer to a request, by a connection of its own."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer, answer.read()
        finally:
            connection.close()

    def get(self, path: str) -> tuple[int, Any]:
        """Status and JSON of what is at ``path``."""
        answer, data = self.send("GET", path)
        return answer.status, json.loads(data)

    def post(self, path: str, body: Any, **headers: str) -> tuple[int, Any]:
        """Status and JSON of the answer to ``body``, which is bytes or becomes JSON."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        answer, found = self.send("POST", path, data, **(JSON | headers))
        return answer.status, json.loads(found)

    def stream(self, path: str, body: Any) -> list[Any]:
        """The JSON of all events of a streamed answer, without the mark of its end."""
        data = json.dumps({**body, "stream": True}).encode()
        answer, found = self.send("POST", path, data, **JSON)
        assert answer.status == 200, found
        *events, last = found.decode().strip().split("\n\n")
        assert last == "data: [DONE]"
        return [json.loads(event.removeprefix("data: ")) for event in events]


@contextmanager
def served(
    models: Mapping[str, ModelFolder | Source | Callable[[], Model]],
    recipes: Sequence[Mapping[str, Any]] = (),
    **settings: Any,
) -> Iterator[Served]:
    """Serves ``models``, each a folder, a source, or what opens it, until the block ends.

    ``settings`` are those of ``Settings``.
    """
    chosen = Settings(port=0, **settings)
    written = StringIO()
    sources = [_source(name, model) for name, model in models.items()]
    service = make_service(sources, chosen, Log(written), recipes)
    listener = bound(chosen)
    server = Server(service, listener)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield Served(server, service, written)
    finally:
        server.stop()
        thread.join(60)
        assert not thread.is_alive(), "the server has not ended"


def _source(name: str, model: ModelFolder | Source | Callable[[], Model]) -> Source:
    if isinstance(model, Source):
        return model
    if isinstance(model, ModelFolder):
        return Source(name, partial(pocketlm.load, model.path, threads=1))
    return Source(name, model)
