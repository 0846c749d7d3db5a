"""All endpoints as one ASGI application, behind the guard."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from .connections.guard import Guard
from .endpoint import Endpoint
from .endpoints import (
    chat,
    compare,
    completions,
    document,
    embeddings,
    health,
    metrics,
    models,
    next_token,
    page,
    recipes,
    responses,
    score,
    tokens,
)
from .errors import ApiError, as_api_error
from .service import Service

ENDPOINTS: list[Endpoint] = [
    *(health.ENDPOINT, metrics.ENDPOINT, models.LIST, models.ONE),
    *(completions.ENDPOINT, chat.ENDPOINT, responses.ENDPOINT, embeddings.ENDPOINT),
    *(tokens.TOKENIZE, tokens.DETOKENIZE, tokens.INFO, score.ENDPOINT),
    *(next_token.ENDPOINT, compare.ENDPOINT, recipes.ENDPOINT),
]
DOCUMENT = document.endpoint_for(ENDPOINTS)
ENDPOINTS.append(DOCUMENT)


def make_app(service: Service) -> Guard:
    """The application of ``service``."""
    routes = [
        (Route(endpoint.path, endpoint.app(service), methods=[endpoint.method]), endpoint.is_open)
        for endpoint in (*ENDPOINTS, *page.ENDPOINTS)
    ]

    async def bug(request: Request, error: Exception) -> Response:
        service.log.failed(request.state.request_id, error)
        answer = as_api_error(error)
        return JSONResponse(answer.body, answer.status, answer.headers)

    handlers = {HTTPException: _refused, Exception: bug}
    app = Starlette(routes=[route for route, _ in routes], exception_handlers=handlers)
    app.router.redirect_slashes = False  # to an address of what the client says our name is
    return Guard(app, service, routes)


async def _refused(request: Request, error: Exception) -> Response:
    """What no endpoint is for."""
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        answer = ApiError(404, "found nothing at this path, expected one of /openapi.json")
    else:
        allowed = (error.headers or {}).get("Allow", "")
        answer = ApiError(error.status_code, f"found another method, expected {allowed}")
    return JSONResponse(answer.body, answer.status, error.headers)
