"""The OpenAPI document: FastAPI's own routes, and beside them the hot ones that it does not see."""

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from service.api.negotiation import JSON, NDJSON, SAFETENSORS
from service.api.problems import MEDIA_TYPE
from service.api.replies import ForwardReply, Problem, SessionStepReply, StepReply
from service.api.requests import ForwardRequest, OpenRequest, SessionStepRequest, StepRequest, StreamRequest

_REF = "#/components/schemas/{model}"

_FORWARD_STATUSES = (400, 401, 404, 406, 408, 413, 415, 422, 429, 500, 503, 504)
_STEP_STATUSES = (*_FORWARD_STATUSES, 409, 410)

# The arrays of PyTorch's tutorial on nn.RNN and nn.RNNCell: they run as they stand on the bundled models.
FORWARD_EXAMPLES: dict[str, Any] = {
    "tutorial": {
        "summary": "Two sequences of three steps, time first",
        "value": {
            "model": "tutorial-rnn",
            "inputs": [
                [[1, 0, 0, 0], [0, 1, 0, 0]],
                [[0, 0, 1, 0], [0, 0, 0, 1]],
                [[1, 1, 0, 0], [0, 0, 1, 1]],
            ],
            "h0": [[[0, 0, 0], [0, 0, 0]]],
            "batch_first": False,
        },
    },
    "ragged": {
        "summary": "Two sequences of unequal length, final states only",
        "value": {
            "model": "tutorial-rnn",
            "inputs": [[[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]], [[0, 0, 0, 1]]],
            "returns": ["last", "h_n"],
        },
    },
}
STEP_EXAMPLES: dict[str, Any] = {
    "tutorial": {
        "summary": "One step of one row, from a state of zeros",
        "value": {"model": "tutorial-cell", "inputs": [[1, 0, 0, 0]], "h": [[0, 0]]},
    },
    "unbatched": {"summary": "Without the batch axis", "value": {"model": "tutorial-cell", "inputs": [1, 0, 0, 0]}},
}
OPEN_EXAMPLES: dict[str, Any] = {
    "zeros": {"summary": "From zeros", "value": {"model": "tutorial-cell"}},
    "state": {
        "summary": "From a state, for a minute",
        "value": {"model": "tutorial-cell", "h": [0.5, -0.5], "ttl_seconds": 60},
    },
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
    requests = (ForwardRequest, StepRequest, SessionStepRequest, StreamRequest, OpenRequest)
    for model in (*requests, ForwardReply, StepReply, SessionStepReply, Problem):
        _add_schema(schemas, model)
    _list_problems(document)
    document["paths"] = _hot_paths() | document["paths"]
    document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    document["security"] = [{}, {"key": []}]  # a service without keys is open
    app.openapi_schema = document
    return document


def _hot_paths() -> dict[str, Any]:
    forward = {
        "tags": ["inference"],
        "operationId": "forward",
        "summary": "Run whole sequences",
        "description": "Sequences through `torch.nn.RNN`, `GRU` or `LSTM` semantics; outputs and final states back.",
        "parameters": _parameters(),
        "requestBody": {
            "required": True,
            "content": {JSON: _json(ForwardRequest, FORWARD_EXAMPLES), SAFETENSORS: _binary()},
        },
        "responses": {"200": _ok({JSON: _json(ForwardReply), SAFETENSORS: _binary()}), **_problems(_FORWARD_STATUSES)},
    }
    step = {
        "tags": ["inference"],
        "operationId": "step",
        "summary": "Run one time step, or a stream of them",
        "description": (
            "One step of `RNNCell`, `GRUCell`, `LSTMCell` or of every layer of a stacked one-directional model; the "
            "client keeps the state, or, with `session`, the service does, and each step runs exactly once. With "
            "`application/x-ndjson`, a stream: the first line may be a StreamRequest (or its fields stand in the "
            "query), every further line is the inputs of one step, and each is answered by one line once it has run."
        ),
        "parameters": [*_parameters(), _session_header(), *_stream_parameters()],
        "requestBody": {
            "required": True,
            "content": {
                JSON: _either(StepRequest, SessionStepRequest) | {"examples": STEP_EXAMPLES},
                SAFETENSORS: _binary(),
                NDJSON: {"schema": {"type": "string"}, "example": '{"model": "tutorial-cell"}\n[1, 0, 0, 0]\n'},
            },
        },
        "responses": {
            "200": _ok(
                {
                    JSON: _either(StepReply, SessionStepReply),
                    SAFETENSORS: _binary(),
                    NDJSON: {"schema": {"type": "string"}},
                }
            ),
            **_problems(_STEP_STATUSES),
        },
    }
    stream = {
        "tags": ["inference"],
        "operationId": "stream",
        "summary": "A stream of steps over a WebSocket",
        "description": STREAM,
        "parameters": [*_stream_parameters(), *_parameters()],
        "responses": {"101": {"description": "The stream is open."}, **_problems((401, 403, 422, 426, 500, 503))},
    }
    return {"/rnn/forward": {"post": forward}, "/cell/step": {"post": step}, "/cell/stream": {"get": stream}}


def _list_problems(document: dict[str, Any]) -> None:
    """FastAPI's own error schema is not what this service sends."""
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            operation["responses"].pop("422", None)
            operation["responses"].update(_problems(_statuses(path, method)))
            if not path.startswith(("/models", "/cell")):
                operation["security"] = []
    opening = document["paths"]["/cell/sessions"]["post"]
    content = {JSON: _json(OpenRequest, OPEN_EXAMPLES), SAFETENSORS: _binary()}
    opening["requestBody"] = {"required": True, "content": content}
    for name in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(name, None)


def _statuses(path: str, method: str) -> list[int]:
    """What the operations of FastAPI's router answer when something is wrong."""
    if path == "/cell/sessions":
        return [400, 401, 404, 408, 409, 413, 415, 422, 503] if method == "post" else [401, 403, 422, 503]
    if path.startswith("/cell/sessions/"):
        return [401, 404, 406, 410, 422, 429, 503]
    if path.startswith("/models"):
        statuses = [404, 422, 503] if path.startswith("/models/") else []
        return [*statuses, 401, 403] if method == "post" else [*statuses, 401]
    return [404] if "{" in path else []


def _add_schema(schemas: dict[str, Any], model: type[BaseModel]) -> None:
    schema = model.model_json_schema(ref_template=_REF)
    schemas.update(schema.pop("$defs", {}))
    schemas[model.__name__] = schema


def _json(model: type[BaseModel], examples: dict[str, Any] | None = None) -> dict[str, Any]:
    content: dict[str, Any] = {"schema": {"$ref": _REF.format(model=model.__name__)}}
    return content | {"examples": examples} if examples else content


def _either(*models: type[BaseModel]) -> dict[str, Any]:
    return {"schema": {"anyOf": [{"$ref": _REF.format(model=model.__name__)} for model in models]}}


def _binary() -> dict[str, Any]:
    return {
        "schema": {"type": "string", "format": "binary", "description": "Arrays by name; other fields in the metadata."}
    }


def _ok(content: dict[str, Any]) -> dict[str, Any]:
    return {"description": "What was asked for.", "content": content}


def _problems(statuses: tuple[int, ...] | list[int]) -> dict[str, Any]:
    content = {MEDIA_TYPE.decode(): {"schema": {"$ref": _REF.format(model="Problem")}}}
    return {str(status): {"description": HTTPStatus(status).phrase, "content": content} for status in statuses}


def _stream_parameters() -> list[dict[str, Any]]:
    words = {
        "model": "Streams only: name of the model.",
        "version": "Streams only: version of the model.",
        "returns": "Streams only: what each answer holds, with commas: outputs, h, c, predictions.",
        "non_finite": "Streams only: error, or null.",
        "session": "Streams only: a session that the service keeps; or the header X-Session-Id.",
        "step": "Streams only: number of the first step.",
    }
    return [
        {"name": name, "in": "query", "description": text, "schema": {"type": "string"}} for name, text in words.items()
    ]


def _session_header() -> dict[str, Any]:
    return {
        "name": "X-Session-Id",
        "in": "header",
        "description": "The session, instead of `session` in the body or the query.",
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$"},
    }


def _parameters() -> list[dict[str, Any]]:
    deadline = "Milliseconds after which the request need not run any more: 504, and it did not run."
    return [
        {
            "name": "X-Request-Timeout-Ms",
            "in": "header",
            "description": deadline,
            "schema": {"type": "integer", "minimum": 0, "maximum": 999_999_999},
        },
        {
            "name": "X-Request-Id",
            "in": "header",
            "description": "The reply and the log carry it; one is made if it is left out.",
            "schema": {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,64}$"},
        },
    ]
