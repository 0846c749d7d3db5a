"""/v1/models: what may be asked for."""

from __future__ import annotations

from typing import Any

from ..api.answer_schemas import ServedModel, ServedModels
from ..call import Call
from ..endpoint import Endpoint
from ..models.pool import OPEN, Served


async def _list(call: Call) -> None:
    served = call.service.pool.served.values()
    await call.answer({"object": "list", "data": [_entry(call, model) for model in served]})


async def _one(call: Call) -> None:
    name = call.scope["path_params"]["name"]
    await call.answer(_entry(call, call.service.pool.find(name)))


def _entry(call: Call, served: Served) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "id": served.source.name,
        "object": "model",
        "created": call.service.pool.created,
        "owned_by": "pocketlm",
        "state": served.state,
        "open": served.state == OPEN,
    }
    if (facts := served.facts) is not None:
        entry |= {
            "context_length": facts.context_length,
            "precision": facts.precision,
            "chat": facts.chat,
        }
    return entry


LIST = Endpoint(
    "GET", "/v1/models", _list, "The models that may be asked for.", answer=ServedModels
)
ONE = Endpoint("GET", "/v1/models/{name:path}", _one, "One of them.", answer=ServedModel)
