"""/metrics: what was counted, for Prometheus."""

from __future__ import annotations

from ..call import Call
from ..endpoint import Endpoint
from ..metrics import CONTENT_TYPE


async def _metrics(call: Call) -> None:
    await call.answer_bytes(call.service.metrics.text(), CONTENT_TYPE.encode())


ENDPOINT = Endpoint(
    "GET",
    "/metrics",
    _metrics,
    "What was counted, in Prometheus' text format.",
    answers_in="text/plain",
)
