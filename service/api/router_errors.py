"""What goes wrong in FastAPI's routes, as the same problems that the hot routes answer with."""

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match, Mount

from service.api.gateway import exchange_of
from service.api.problems import MEDIA_TYPE, STATUS, encode_problem, headers_of, internal_problem, problem
from service.errors import FieldError, InvalidRequest, MethodNotAllowed, RouteNotFound, ServiceError


def answer_with_problems(app: FastAPI) -> None:
    """Register the handlers. An error of ours is answered here and raised on, to be logged by the gateway."""
    app.add_exception_handler(ServiceError, _of_the_domain)
    app.add_exception_handler(HTTPException, _of_the_router)
    app.add_exception_handler(RequestValidationError, _of_an_argument)
    app.add_exception_handler(Exception, _of_ours)


async def _of_the_domain(request: Request, error: Exception) -> Response:
    if not isinstance(error, ServiceError):
        raise error
    document = problem(error, exchange_of(request.scope).request_id)
    reply = Response(encode_problem(document), STATUS[type(error)], media_type=MEDIA_TYPE.decode())
    reply.raw_headers.extend(headers_of(error))
    return reply


async def _of_the_router(request: Request, error: Exception) -> Response:
    path = request.scope["path"]
    if isinstance(error, HTTPException) and error.status_code == 405:
        allowed, method = _allowed(request), exchange_of(request.scope).scope["method"]
        return await _of_the_domain(request, MethodNotAllowed(f"{path:.80} takes {allowed}, not {method:.20}", allowed))
    return await _of_the_domain(request, RouteNotFound(f"nothing lives at {path:.80}; /docs lists what there is"))


async def _of_an_argument(request: Request, error: Exception) -> Response:
    if not isinstance(error, RequestValidationError):
        raise error
    places = [FieldError(tuple(item["loc"]), item["msg"]) for item in error.errors()]
    return await _of_the_domain(request, InvalidRequest(places))


async def _of_ours(request: Request, _: Exception) -> Response:
    document = internal_problem(exchange_of(request.scope).request_id)
    return Response(encode_problem(document), 500, media_type=MEDIA_TYPE.decode())


def _allowed(request: Request) -> str:
    """The methods of all routes at a path; Starlette names those of the first alone."""
    path = request.scope["path"]
    methods = {
        method
        for method in ("DELETE", "GET", "PATCH", "POST", "PUT")
        for route in request.app.routes
        if not isinstance(route, Mount)  # which leaves methods to what is behind it
        and route.matches({"type": "http", "path": path, "method": method})[0] == Match.FULL
    }
    return ", ".join(sorted(methods | {"HEAD"} if "GET" in methods else methods)) or "GET, HEAD"  # files
