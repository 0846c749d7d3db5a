"""What an operator decides, and the limits that keep one client from harming another."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from ...export.errors import RequestError
from ...export.strict_json import quoted

LARGEST_KEY = 4096  # characters
_ORIGIN = re.compile(r"https?://(\[[0-9a-f:]+\]|[a-z0-9.-]+)(:[0-9]{1,5})?", re.IGNORECASE)
_HOST = re.compile(r"(\[[0-9a-f:]+\]|[a-z0-9._-]+)(:[0-9]{1,5})?", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a server behaves; seconds and bytes.

    host, port          where it listens
    api_key             what clients must show, None: nothing
    hosts               further names, beside those of loopback and ``host``, that a Host may say
    origins             web pages of other origins that may ask
    parallel            texts of one model that are computed together
    most_waiting        texts of one model that wait for their turn; more are refused
    kv_bytes            what the keys and values of one model's texts may take; None: half of what
                        is free
    reproducible        whether a text is the same in whatever company
    max_seconds         that a text may take at most; None: any
    most_body_bytes     of a request
    header_seconds      until a request's headers are there
    body_seconds        until its body is
    stall_seconds       that a client may take no byte of an answer
    grace_seconds       that answers under way have when the server is told to end
    idle_seconds        without a request after which a model is dropped; None: never
    memory_bytes        that all open models may come to take: weights, keys and values; None: any
    open_first          whether the first model is opened at the start, and not when it is first
                        asked for
    """

    host: str = "127.0.0.1"
    port: int = 8080
    api_key: str | None = None
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    parallel: int = 8
    most_waiting: int = 32
    kv_bytes: int | None = None
    reproducible: bool = True
    max_seconds: float | None = None
    most_body_bytes: int = 4_000_000
    header_seconds: float = 10.0
    body_seconds: float = 25.0
    stall_seconds: float = 30.0
    grace_seconds: float = 10.0
    idle_seconds: float | None = None
    memory_bytes: int | None = None
    open_first: bool = False


def check_settings(settings: Settings) -> None:
    """Raises RequestError for what cannot be, or would have anyone use the models."""
    if not settings.host.strip():
        raise RequestError("host is empty, expected an address such as 127.0.0.1; leave it out")
    if settings.api_key is None and not is_loopback(settings.host):
        raise RequestError(
            f"host is {quoted(settings.host, 100)}, expected 127.0.0.1, ::1 or localhost as long "
            "as there is no key: whoever reaches another may use the models; write a key into a "
            "file and add --api-key-file FILE"
        )
    if settings.api_key is not None:
        _check_key(settings.api_key)
    for host in settings.hosts:
        if not _HOST.fullmatch(host):
            raise RequestError(
                f"hosts has {quoted(host, 100)}, expected a name or an address, and perhaps a "
                "port, as a Host says it, such as pc.local or pc.local:8080"
            )
    for origin in settings.origins:
        if not _ORIGIN.fullmatch(origin):
            raise RequestError(
                f"origins has {quoted(origin, 100)}, expected a scheme and a host, and perhaps a "
                "port, such as https://example.org or http://localhost:3000; every page there may "
                "then use the models"
            )


def is_loopback(host: str) -> bool:
    """Whether nobody on another machine reaches what listens at ``host``."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name, which may mean anything
        return False


def _check_key(key: str) -> None:
    if not key:
        raise RequestError("api_key is empty, expected a key; is a variable not set?")
    if len(key) > LARGEST_KEY or not all("!" <= letter <= "~" for letter in key):
        raise RequestError(
            f"api_key has {len(key):,} characters, expected up to {LARGEST_KEY:,} visible ones of "
            "ASCII on one line; make one with: openssl rand -hex 32"
        )
