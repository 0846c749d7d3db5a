"""What an operator decides, and the limits that keep one client from harming another."""

from __future__ import annotations

from dataclasses import dataclass


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
    most_connections    of clients; beyond, the one that is idle for longest is ended
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
    most_connections: int = 512
    most_body_bytes: int = 4_000_000
    header_seconds: float = 10.0
    body_seconds: float = 25.0
    stall_seconds: float = 30.0
    grace_seconds: float = 10.0
    idle_seconds: float | None = None
    memory_bytes: int | None = None
    open_first: bool = False

    @property
    def most_texts(self) -> int:
        """Of one model that run and wait."""
        return self.parallel + self.most_waiting
