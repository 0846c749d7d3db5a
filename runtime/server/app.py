"""All endpoints as one ASGI application, behind the guard."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from .endpoint import Endpoint
from .endpoints import chat, compare, completions, health, models, next, page, recipes
from .errors import ApiError
from .guard import Guard
from .service import Service

ENDPOINTS: Sequence[Endpoint] = [
    *(health.ENDPOINT, models.LIST, models.ONE),
    *(completions.ENDPOINT, chat.ENDPOINT),
    *(next.ENDPOINT, compare.ENDPOINT, recipes.ENDPOINT),
]


def make_app(service: Service) -> Guard:
    """The application of ``service``."""
    served = [*ENDPOINTS, *page.ENDPOINTS]
    routes = [
        Route(endpoint.path, endpoint.app(service), methods=[endpoint.method])
        for endpoint in served
    ]
    app = Starlette(routes=routes, exception_handlers={HTTPException: _refused})
    return Guard(app, service, [endpoint.path for endpoint in served if endpoint.is_open])


def _refused(request: Request, error: Exception) -> Response:
    """What no endpoint is for."""
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        answer = ApiError(404, "found nothing at this path, expected one of /openapi.json")
    else:
        allowed = (error.headers or {}).get("Allow", "")
        answer = ApiError(error.status_code, f"found another method, expected {allowed}")
    return JSONResponse(answer.body, answer.status, error.headers)
