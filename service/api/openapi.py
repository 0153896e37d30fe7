"""The OpenAPI document: FastAPI's, and what it does not know: the problems that a call answers, and the WebSocket."""

import json
import re
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from service.api.keys import OPEN
from service.api.negotiation import JSON, NDJSON
from service.api.paths import is_v2
from service.api.problems import MEDIA_TYPE, STATUS, slug
from service.api.replies import Problem
from service.api.requests import StreamRequest
from service.api.routes import STREAM_PARAMETERS
from service.serving.registry import Registry
from service.spec import ModelSpec

_REF = "#/components/schemas/{model}"

_INFERENCE = (400, 404, 406, 408, 413, 415, 422, 429, 503, 504)
_SESSION = (404, 406, 410, 422, 429, 503)

_PROBLEMS = {
    "post /rnn/forward": _INFERENCE,
    "post /rnn/generate": (*_INFERENCE, 409, 410),
    "post /cell/step": (*_INFERENCE, 409, 410),
    "post /cell/sessions/": _SESSION,
    "post /cell/sessions": (400, 404, 408, 409, 413, 415, 422, 503),
    "get /cell/sessions/": _SESSION,
    "get /cell/sessions": (403, 422, 503),
    "delete /cell/sessions/": _SESSION,
    "get /models/": (404, 422, 503),
    "post /models/": (403, 404, 409, 422, 503),
    "get /problems/": (404,),
    "post /v2/models/": _INFERENCE,
    "get /v2/models": (404, 503),
    "post /v2/repository": (404, 408, 409, 413, 415, 503),
}
"""What a call answers when something is wrong, by the beginning of its method and path; the first that fits. Beside
these, 401 where a key may be needed, and 400, 403 and 500."""

STREAM = """Open it as a WebSocket. What may stand in the query may also come as the first message, a StreamRequest.

- A text frame holds one or more lines, each the inputs of one step as in the NDJSON of `/cell/step`; it is answered by
  one text frame with a line for each.
- A binary frame holds k·I little-endian 32-bit floats, or k 32-bit token ids, of k ≥ 1 steps. It is answered by one
  binary frame with one array of each step in turn: the one that `returns` names, `outputs` if it is left out. With
  several names binary frames are refused.
- A frame of more than 1,024 steps is answered by several, of 1,024 steps each.
- A result that is NaN or infinite ends the stream, in either kind of frame, unless `non_finite` is `null`.
- An error is a text frame `{"error": problem}`, and then the close: 1007 for what is wrong with a message, 1009 if it
  is too large, 1008 for other refusals, 1012 when the process goes down (connect again), 1013 to try again later, 1011
  for a failure of the service.
- Browsers, which cannot send Authorization, offer the subprotocols `rnn-service` and `bearer.<base64url of the key>`.
  Pages of other origins need theirs in RNN_ALLOWED_ORIGINS."""


def describe(app: FastAPI, registry: Registry) -> dict[str, Any]:
    """The whole document, with examples of the models that there are now."""
    app.openapi_schema = document = app.openapi_schema or _document(app)
    _add_examples(document, registry)
    return document


def _document(app: FastAPI) -> dict[str, Any]:
    document = get_openapi(
        title=app.title, version=app.version, summary=app.summary, description=app.description, routes=app.routes
    )
    schemas = document["components"]["schemas"]
    _, ours = models_json_schema([(StreamRequest, "validation"), (Problem, "serialization")], ref_template=_REF)
    schemas |= ours["$defs"]
    for name in ("HTTPValidationError", "ValidationError"):  # FastAPI's own, which this service never sends
        schemas.pop(name, None)
    for schema in schemas.values():
        for field in schema.get("properties", {}).values():
            field.pop("default", None)  # generators of clients would take it for a field that is always there
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            call = f"{method} {path}"
            statuses = next((_PROBLEMS[start] for start in _PROBLEMS if call.startswith(start)), ())
            operation["responses"].pop("422", None)
            others = [one for one in operation.get("parameters", ()) if one["in"] != "path"]
            operation["parameters"] = [*_path_parameters(path), *others]
            told = _errors if is_v2(path) else _problems
            if path.startswith(OPEN):
                operation["security"] = []
            else:
                statuses = (401, *statuses)
            # Any call may come with a wrong Host or Origin, or find a fault of the service.
            operation["responses"] |= told((400, 403, 500, *statuses))
    document["paths"]["/cell/stream"] = {
        "get": {
            "tags": ["inference"],
            "operationId": "stream",
            "summary": "A stream of steps over a WebSocket",
            "description": STREAM,
            "parameters": STREAM_PARAMETERS,
            "responses": {"101": {"description": "It is open."}, **_problems((400, 401, 403, 422, 426, 500, 503))},
        }
    }
    document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    document["security"] = [{}, {"key": []}]  # a service without keys is open
    return document


def _path_parameters(path: str) -> list[dict[str, Any]]:
    """All that a path names, also where its handler reads them from the path itself."""
    return [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"{(\w+)}", path)
    ]


def _problems(statuses: Iterable[int]) -> dict[str, Any]:
    return {str(status): _problem(HTTPStatus(status)) for status in statuses}


def _problem(status: HTTPStatus) -> dict[str, Any]:
    """The response of a status: all kinds of problems that have it by name, and one as an example."""
    kinds = {slug(kind): kind.__doc__ for kind, its in STATUS.items() if its == status}
    name, detail = next(iter(kinds.items()), (slug(Exception), "The service failed; its log has the reason."))
    example: dict[str, Any] = {"type": f"/problems/{name}", "title": name.replace("-", " ").capitalize()}
    example |= {"status": status, "detail": detail, "request_id": "5f0c2d9a1b00002a"}
    content = {"schema": {"$ref": _REF.format(model="Problem")}, "example": example}
    return {"description": f"{status.phrase}: {', '.join(kinds) or name}", "content": {MEDIA_TYPE.decode(): content}}


def _errors(statuses: Iterable[int]) -> dict[str, Any]:
    """As `_problems`, in the form of the Open Inference Protocol."""
    schema = {"type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"]}
    content = {JSON: {"schema": schema}}
    known = (status for status in statuses if status != 422)
    return {str(status): {"description": HTTPStatus(status).phrase, "content": content} for status in known}


def _add_examples(document: dict[str, Any], registry: Registry) -> None:
    """Examples that run as they stand, each on the smallest model that can do it."""
    sound = [
        found for model in registry.models() if not model.failure and (found := model.serving()) and not found.failure
    ]
    if not sound:
        return
    sound.sort(key=lambda version: version.spec.flops_per_step)
    steppable = [version for version in sound if not version.spec.bidirectional]
    model = (steppable or sound)[0]
    x, y = (_one_step(model.spec, place) for place in (0, 1))
    bodies: dict[str, dict[str, Any]] = {
        "/rnn/forward": {
            "Two sequences of two steps, time first": {"inputs": [[x, y], [y, x]], "batch_first": False},
            "Two of unequal length, final states only": {"inputs": [[x, y], [y]], "returns": ["last", "h_n"]},
        },
        "/cell/step": {"One step of two rows": {"inputs": [x, y]}, "Without the batch axis": {"inputs": x}},
        "/cell/sessions": {"From zeros": {}, "For a minute": {"ttl_seconds": 60}},
    }
    for going_on in [version for version in steppable if version.spec.feeds_itself][:1]:
        context = [_one_step(going_on.spec, place) for place in (0, 1)]
        bodies["/rnn/generate"] = {"Five steps more": {"model": going_on.name, "inputs": context, "steps": 5}}
    for path in bodies if steppable else ["/rnn/forward"]:
        content = document["paths"][path]["post"]["requestBody"]["content"]
        titled = {title: {"value": {"model": model.name, **fields}} for title, fields in bodies[path].items()}
        content[JSON]["examples"] = titled
        if NDJSON in content:
            content[NDJSON]["example"] = "".join(f"{json.dumps(line)}\n" for line in ({"model": model.name}, x, y))


def _one_step(spec: ModelSpec, place: int) -> int | list[float]:
    """One step's input: a token id, or a vector of zeros but for one place."""
    if spec.num_embeddings is not None:
        return min(place, spec.num_embeddings - 1)
    return [float(index == place) for index in range(spec.in_features)]
