"""/v1/embeddings: refused, by what is said there."""

from __future__ import annotations

from ..api.bodies import Embeddings
from ..call import Call
from ..endpoint import Endpoint
from ..errors import ApiError


async def _embeddings(call: Call) -> None:
    body: Embeddings = call.body
    call.service.pool.find(body.model)
    raise ApiError(
        400,
        "found a request for embeddings, expected one for text: the graphs of these models end in "
        "logits, and hidden states are not to be had; use a model made for embeddings",
        param="model",
        code="embeddings_not_supported",
    )


ENDPOINT = Endpoint(
    "POST",
    "/v1/embeddings",
    _embeddings,
    "Refused: models that go on with a text have no embeddings.",
    body=Embeddings,
)
