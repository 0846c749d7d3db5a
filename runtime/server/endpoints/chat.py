"""/v1/chat/completions: a conversation goes in, the answer comes out."""

from __future__ import annotations

from functools import partial

from ...openai_form import CHAT
from ..api.answer_schemas import Answered
from ..api.bodies import Chat
from ..api.completions import generate
from ..endpoint import Endpoint

ENDPOINT = Endpoint(
    "POST",
    CHAT,
    partial(generate, chat=True),
    "Answers a conversation, by the model's chat template.",
    body=Chat,
    answer=Answered,
    streams=True,
)
