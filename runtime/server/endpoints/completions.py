"""/v1/completions: a text goes in, what follows it comes out."""

from __future__ import annotations

from functools import partial

from ...openai_form import COMPLETION
from ..api.answer_schemas import Completed
from ..api.bodies import Completion
from ..api.completions import generate
from ..endpoint import Endpoint

ENDPOINT = Endpoint(
    "POST",
    COMPLETION,
    partial(generate, chat=False),
    "Continues a text.",
    body=Completion,
    answer=Completed,
    streams=True,
)
