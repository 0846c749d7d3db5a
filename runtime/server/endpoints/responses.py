"""/v1/responses: OpenAI's newer interface, as far as text and functions go."""

from __future__ import annotations

from ..api.answer_schemas import Responded
from ..api.bodies import Response
from ..api.responses import respond
from ..endpoint import Endpoint

ENDPOINT = Endpoint(
    "POST",
    "/v1/responses",
    respond,
    "Answers a conversation, by OpenAI's newer interface; nothing of it is kept.",
    body=Response,
    answer=Responded,
    streams=True,
)
