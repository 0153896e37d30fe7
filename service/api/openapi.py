"""The OpenAPI document: FastAPI's, and what it does not know: the problems that a call answers, and the WebSocket."""

from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from service.api.problems import MEDIA_TYPE
from service.api.replies import Problem
from service.api.requests import StreamRequest
from service.api.routes import STREAM_PARAMETERS

_REF = "#/components/schemas/{model}"

_INFERENCE = (400, 401, 404, 406, 408, 413, 415, 422, 429, 500, 503, 504)
_SESSION = (401, 404, 406, 410, 422, 429, 503)

_PROBLEMS = {
    "post /rnn/forward": _INFERENCE,
    "post /rnn/generate": (*_INFERENCE, 409, 410),
    "post /cell/step": (*_INFERENCE, 409, 410),
    "post /cell/sessions/": _SESSION,
    "post /cell/sessions": (400, 401, 404, 408, 409, 413, 415, 422, 503),
    "get /cell/sessions/": _SESSION,
    "get /cell/sessions": (401, 403, 422, 503),
    "delete /cell/sessions/": _SESSION,
    "get /models/": (401, 404, 422, 503),
    "get /models": (401,),
    "post /models/": (401, 403, 404, 422, 503),
    "get /problems/": (404,),
}
"""What a call answers when something is wrong, by the beginning of its method and path; the first that fits."""

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
    schemas = document["components"]["schemas"]
    _, ours = models_json_schema([(StreamRequest, "validation"), (Problem, "serialization")], ref_template=_REF)
    schemas |= ours["$defs"]
    for name in ("HTTPValidationError", "ValidationError"):  # FastAPI's own, which this service never sends
        schemas.pop(name, None)
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            call = f"{method} {path}"
            statuses = next((_PROBLEMS[start] for start in _PROBLEMS if call.startswith(start)), ())
            operation["responses"].pop("422", None)
            operation["responses"] |= _problems(statuses)
            if not path.startswith(("/models", "/cell", "/rnn")):
                operation["security"] = []
    document["paths"]["/cell/stream"] = {
        "get": {
            "tags": ["inference"],
            "operationId": "stream",
            "summary": "A stream of steps over a WebSocket",
            "description": STREAM,
            "parameters": STREAM_PARAMETERS,
            "responses": {"101": {"description": "The stream is open."}, **_problems((401, 403, 422, 426, 500, 503))},
        }
    }
    document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    document["security"] = [{}, {"key": []}]  # a service without keys is open
    app.openapi_schema = document
    return document


def _problems(statuses: Iterable[int]) -> dict[str, Any]:
    content = {MEDIA_TYPE.decode(): {"schema": {"$ref": _REF.format(model="Problem")}}}
    return {str(status): {"description": HTTPStatus(status).phrase, "content": content} for status in statuses}
