"""/v1/completions: a text goes in, what follows it comes out."""

from __future__ import annotations

from functools import partial

from ..answers import Completed
from ..bodies import Completion
from ..endpoint import Endpoint
from ..generating import generate

ENDPOINT = Endpoint(
    "POST",
    "/v1/completions",
    partial(generate, chat=False),
    "Continues a text.",
    body=Completion,
    answer=Completed,
    streams=True,
)
