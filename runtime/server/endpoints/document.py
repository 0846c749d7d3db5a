"""/openapi.json: what is served here, for programs to read."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from ..api.openapi import document
from ..call import JSON, Call
from ..endpoint import Endpoint
from ..json_encoding import encoded


def endpoint_for(endpoints: Sequence[Endpoint]) -> Endpoint:
    """What describes ``endpoints``, of which it may be one later."""

    @lru_cache(8)
    def written(names: tuple[str, ...], with_key: bool) -> bytes:
        return encoded(document(endpoints, names, with_key=with_key))

    async def answer(call: Call) -> None:
        service = call.service
        data = written(tuple(service.pool.names), service.settings.api_key is not None)
        await call.answer_bytes(data, JSON)

    return Endpoint("GET", "/openapi.json", answer, "This document.")
