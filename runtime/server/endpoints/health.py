"""/health: whether the server answers."""

from __future__ import annotations

from ..answers import Health
from ..call import Call
from ..endpoint import Endpoint


async def _health(call: Call) -> None:
    await call.answer({"status": "ok"})


ENDPOINT = Endpoint(
    "GET", "/health", _health, "Whether the server answers.", is_open=True, answer=Health
)
