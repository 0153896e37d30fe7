"""The OpenAPI document: FastAPI's, and what it does not know: the problems that a call answers, and the WebSocket."""

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from service.api.problems import MEDIA_TYPE
from service.api.replies import Problem
from service.api.requests import StreamRequest
from service.api.routes import STREAM_PARAMETERS

_REF = "#/components/schemas/{model}"

_FORWARD_STATUSES = [400, 401, 404, 406, 408, 413, 415, 422, 429, 500, 503, 504]
_STATUSES: dict[str, list[int]] = {
    "post /rnn/forward": _FORWARD_STATUSES,
    "post /cell/step": [*_FORWARD_STATUSES, 409, 410],
    "post /cell/sessions": [400, 401, 404, 408, 409, 413, 415, 422, 503],
    "get /cell/sessions": [401, 403, 422, 503],
}

STREAM = """Open it as a WebSocket. What may stand in the query may also come as the first message, a StreamRequest.

- A text frame holds one or more lines, each the inputs of one step as in the NDJSON of `/cell/step`; it is answered by
  one text frame with a line for each.
- A binary frame holds k·input_size little-endian 32-bit floats, the inputs of k ≥ 1 steps; it is answered by one binary
  frame with one array of each step in turn: the one that `returns` names, `outputs` if it is left out. With several
  names binary frames are refused.
- A frame of more than 1,024 steps is answered by several, of 1,024 steps each.
- A result that is NaN or infinite ends the stream, in either kind of frame, unless `non_finite` is `null`.
- An error is a text frame `{"error": problem}`, and then the close: 1007 for what is wrong with a message, 1009 if it
  is too large, 1008 for other refusals, 1012 when the process goes down (connect again), 1013 to try again later, 1011
  for a failure of the service.
- Browsers, which cannot send Authorization, offer the subprotocols `rnn-service` and `bearer.<base64url of the key>`.
  Pages of other hosts need their origin in RNN_ALLOWED_ORIGINS."""


def describe(app: FastAPI) -> dict[str, Any]:
    """The whole document; built once, at the first request for it."""
    if app.openapi_schema:
        return app.openapi_schema
    document = get_openapi(
        title=app.title, version=app.version, summary=app.summary, description=app.description, routes=app.routes
    )
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for model in (StreamRequest, Problem):
        _add_schema(schemas, model)
    for name in ("HTTPValidationError", "ValidationError"):  # FastAPI's own, which this service never sends
        schemas.pop(name, None)
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            operation["responses"].pop("422", None)
            operation["responses"].update(_problems(_statuses(path, method)))
            if not path.startswith(("/models", "/cell", "/rnn")):
                operation["security"] = []
    document["paths"]["/cell/stream"] = {
        "get": {
            "tags": ["inference"],
            "operationId": "stream",
            "summary": "A stream of steps over a WebSocket",
            "description": STREAM,
            "parameters": STREAM_PARAMETERS,
            "responses": {"101": {"description": "The stream is open."}, **_problems([401, 403, 422, 426, 500, 503])},
        }
    }
    document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    document["security"] = [{}, {"key": []}]  # a service without keys is open
    app.openapi_schema = document
    return document


def _statuses(path: str, method: str) -> list[int]:
    """What a call answers when something is wrong."""
    if (statuses := _STATUSES.get(f"{method} {path}")) is not None:
        return statuses
    if path.startswith("/cell/sessions/"):
        return [401, 404, 406, 410, 422, 429, 503]
    if path.startswith("/models"):
        statuses = [404, 422, 503] if path.startswith("/models/") else []
        return [*statuses, 401, 403] if method == "post" else [*statuses, 401]
    return [404] if "{" in path else []


def _problems(statuses: list[int]) -> dict[str, Any]:
    content = {MEDIA_TYPE.decode(): {"schema": {"$ref": _REF.format(model="Problem")}}}
    return {str(status): {"description": HTTPStatus(status).phrase, "content": content} for status in statuses}


def _add_schema(schemas: dict[str, Any], model: type[BaseModel]) -> None:
    schema = model.model_json_schema(ref_template=_REF)
    schemas.update(schema.pop("$defs", {}))
    schemas[model.__name__] = schema
