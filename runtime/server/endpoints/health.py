"""/health: whether the server answers."""

from __future__ import annotations

from typing import Any

from ..api.answer_schemas import Health
from ..call import Call
from ..endpoint import Endpoint


async def _health(call: Call) -> None:
    answer: dict[str, Any] = {"status": "ok"}
    if call.service.settings.api_key is None:  # or names of models would be there without the key
        answer["models"] = {name: model.state for name, model in call.service.pool.served.items()}
    await call.answer(answer)


ENDPOINT = Endpoint(
    "GET", "/health", _health, "Whether the server answers.", is_open=True, answer=Health
)
