"""Where a server is: http://127.0.0.1:8080, with or without /v1 at its end."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPSConnection
from urllib.parse import urlsplit

from pocketlm.export.errors import RequestError
from pocketlm.export.strict_json import quoted

PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Address:
    """A server's; ``path`` is what comes before /v1, mostly nothing."""

    scheme: str
    host: str
    port: int
    path: str = ""

    @classmethod
    def parse(cls, url: str) -> Address:
        """Raises RequestError for what is no address of a server."""
        wrong = RequestError(
            f"server: found {quoted(url, 100)}, expected the address of a server, such as "
            "http://127.0.0.1:8080; correct it"
        )
        if not url.isascii() or not url.isprintable() or " " in url:
            raise wrong
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise wrong from error
        if parts.scheme not in PORTS or not parts.hostname or port == 0:
            raise wrong
        if parts.username is not None or parts.query or parts.fragment:
            raise wrong
        path = parts.path.rstrip("/").removesuffix("/v1")
        return cls(parts.scheme, parts.hostname, port or PORTS[parts.scheme], path)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port == PORTS[self.scheme] else f":{self.port}"
        return f"{self.scheme}://{host}{port}{self.path}"

    def connection(self, seconds: float) -> HTTPConnection:
        """One that is not open yet, and goes straight there, whatever proxy there is."""
        if self.scheme == "http":
            return HTTPConnection(self.host, self.port, timeout=seconds)
        context = ssl.create_default_context()
        return HTTPSConnection(self.host, self.port, timeout=seconds, context=context)
