"""/v1/responses: OpenAI's newer interface, as far as text and functions go."""

from __future__ import annotations

from ..answers import Responded
from ..bodies import Response
from ..endpoint import Endpoint
from ..responding import respond

ENDPOINT = Endpoint(
    "POST",
    "/v1/responses",
    respond,
    "Answers a conversation, by OpenAI's newer interface; nothing of it is kept.",
    body=Response,
    answer=Responded,
    streams=True,
)
