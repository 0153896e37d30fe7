"""The OpenAPI document: its examples run, and random requests get the replies that it describes."""

import json
import re

import jsonschema
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from .formats import NDJSON
from .models import write_model

EXAMPLES_EACH = 20
SLOW = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]


@pytest.fixture(scope="module")
def document(service):
    return service.get("/openapi.json").json()


@pytest.mark.parametrize("names", [(), ("lstm", "both-ways"), ("lstm-both-ways",)])
def test_examples_run_on_models_of_the_service(service, launch, tmp_path, names):
    for name in names:
        write_model(tmp_path / "models", name)
    running = launch(tmp_path / "models") if names else service
    paths = running.get("/openapi.json").json()["paths"]
    steppable = names != ("lstm-both-ways",)
    for path, status in {
        "/rnn/forward": 200,
        **({"/cell/step": 200, "/cell/sessions": 201} if steppable else {}),
    }.items():
        examples = paths[path]["post"]["requestBody"]["content"]["application/json"]["examples"].values()
        for example in examples:
            reply = running.post(path, example["value"])
            assert reply.status_code == status, (example, reply.text)
    content = paths["/cell/step"]["post"]["requestBody"]["content"]
    assert ("examples" in content["application/json"]) == steppable
    if steppable:
        reply = running.post("/cell/step", content=content[NDJSON]["example"], headers={"content-type": NDJSON})
        assert [json.loads(line)["step"] for line in reply.text.splitlines()] == [1, 2]


def test_every_field_is_described(document):
    for name, schema in document["components"]["schemas"].items():
        for field, described in schema.get("properties", {}).items():
            assert described.get("description") or "$ref" in described or name == "ModelList", f"{name}.{field}"


def test_every_operation_lists_its_problems(document):
    for path in ("/rnn/forward", "/rnn/generate", "/cell/step"):
        responses = document["paths"][path]["post"]["responses"]
        for status in ("400", "401", "404", "413", "415", "422", "503", "504"):
            assert "application/problem+json" in responses[status]["content"]


def test_generators_find_plain_names_and_the_parameters_of_each_path(document):
    assert not [name for name in document["components"]["schemas"] if "__" in name]
    for path, operations in document["paths"].items():
        for operation in operations.values():
            parameters = [one for one in operation.get("parameters", ()) if one["in"] == "path"]
            assert [one["name"] for one in parameters] == re.findall(r"{(\w+)}", path), path
            assert all(one["schema"]["type"] == "string" for one in parameters), path


def test_operations_have_names_of_their_own(document):
    names = [operation["operationId"] for methods in document["paths"].values() for operation in methods.values()]
    assert {"forward", "generate", "step", "open_session", "delete_session", "get_model", "ready"} <= {*names}
    assert len({*names}) == len(names)
    assert all(name.isidentifier() and "__" not in name and len(name) < 25 for name in names), names


X = [1, 2, 3, 4]
ALL = ["outputs", "last", "h_n", "predictions"]
FED = {"model": "gru", "steps": 2, "feedback": [0, 1], "returns": ["outputs", "predictions", "h_n"]}
REPLIES = [
    ("post", "/rnn/forward", {"model": "gru", "inputs": [[X, X]], "returns": ALL}),
    ("post", "/rnn/forward", {"model": "gru", "inputs": [X, X], "returns": ALL}),
    ("post", "/rnn/forward", {"model": "gru", "inputs": [[X, X], [X]], "returns": ALL}),
    ("post", "/rnn/forward", {"model": "lstm", "inputs": [[[*X, 5]]]}),
    ("post", "/rnn/forward", {"model": "explodes", "inputs": [[[1]] * 5], "non_finite": "null"}),
    ("post", "/rnn/generate", FED | {"inputs": [[X]], "future": [[X]]}),
    ("post", "/rnn/generate", FED | {"inputs": [X], "future": [X]}),
    ("post", "/cell/step", {"model": "gru", "inputs": [X]}),
    ("post", "/cell/step", {"model": "gru", "inputs": X}),
    ("post", "/cell/step", {"model": "tanh", "inputs": X, "h": [0] * 6}),
    ("post", "/cell/step", {"model": "tanh", "inputs": [X], "h": [[[0] * 6]]}),
    ("post", "/cell/step", {"session": "gru", "inputs": X, "returns": ["outputs", "h", "predictions"]}),
    ("post", "/cell/step", {"session": "gru", "inputs": [X, X]}),
    ("post", "/cell/step", {"session": "tanh", "inputs": X, "returns": ["h"]}),
    ("post", "/rnn/generate", {**FED, "session": "gru", "inputs": X, "future": [X]}),
    ("post", "/cell/sessions", {"model": "lstm"}),
    ("get", "/cell/sessions/{session}", None),
    ("delete", "/cell/sessions/{session}", None),
    ("get", "/models", None),
    ("get", "/models/{name}", None),
    ("get", "/health/ready", None),
]
REFUSALS = [
    ("post", "/rnn/forward", {"model": "gru", "inputs": [[1]]}),
    ("post", "/cell/step", {"session": "gone", "inputs": X}),
    ("post", "/cell/step", {"session": "gru", "inputs": X, "step": 9}),
]


@pytest.mark.parametrize(("method", "path", "fields"), REPLIES + REFUSALS)
def test_replies_are_what_is_described(service, document, method, path, fields):
    """No field that the document does not have, and none missing that it promises."""
    succeeds = (method, path, fields) in REPLIES
    model = (fields or {}).get("session", "tanh").replace("gone", "gru")
    session = service.post("/cell/sessions", {"model": model}).json()["session"]
    if fields and "session" in fields:
        if fields["session"] == "gone":
            service.delete(f"/cell/sessions/{session}")
        fields = fields | {"session": session}
    query = "?state=true" if "{session}" in path else ""
    with service.client() as client:
        reply = client.request(method, path.format(session=session, name="gru") + query, json=fields)
    assert reply.is_success == succeeds, reply.text
    described = document["paths"][path][method]["responses"][str(reply.status_code)]["content"]
    whole = json.loads(json.dumps(document["components"]["schemas"]))
    for schema in whole.values():
        schema["additionalProperties"] = False
    wanted = described[reply.headers["content-type"]]["schema"] | {"components": {"schemas": whole}}
    jsonschema.Draft202012Validator(wanted).validate(reply.json())


@pytest.fixture(scope="module")
def schema(service):
    return schemathesis.openapi.from_url(f"{service.url}/openapi.json")


OPERATIONS = [
    ("/rnn/forward", "POST"),
    ("/rnn/generate", "POST"),
    ("/cell/step", "POST"),
    ("/cell/stream", "GET"),
    ("/models", "GET"),
    ("/models/{name}", "GET"),
    ("/models/{name}/reload", "POST"),
    ("/models/{name}/unload", "POST"),
    ("/models/{name}/drain", "POST"),
    ("/cell/sessions", "POST"),
    ("/cell/sessions", "GET"),
    ("/cell/sessions/{session}", "GET"),
    ("/cell/sessions/{session}", "DELETE"),
    ("/cell/sessions/{session}/fork", "POST"),
    ("/cell/sessions/{session}/reset", "POST"),
    ("/health/live", "GET"),
    ("/health/ready", "GET"),
    ("/metrics", "GET"),
    ("/problems/{slug}", "GET"),
    ("/v2", "GET"),
    ("/v2/health/live", "GET"),
    ("/v2/health/ready", "GET"),
    ("/v2/models/stats", "GET"),
    *((f"/v2/models/{{model}}{end}", "GET") for end in ("", "/ready", "/config", "/stats")),
    *((f"/v2/models/{{model}}/versions/{{version}}{end}", "GET") for end in ("", "/ready", "/config", "/stats")),
    ("/v2/models/{model}/infer", "POST"),
    ("/v2/models/{model}/versions/{version}/infer", "POST"),
    ("/v2/repository/index", "POST"),
    ("/v2/repository/models/{model}/load", "POST"),
    ("/v2/repository/models/{model}/unload", "POST"),
]
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


def test_every_operation_is_fuzzed(document):
    described = {(path, method.upper()) for path, methods in document["paths"].items() for method in methods}
    assert described == set(OPERATIONS)


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_random_requests_conform(schema, path, method):
    @settings(max_examples=EXAMPLES_EACH, deadline=None, derandomize=True, database=None, suppress_health_check=SLOW)
    @given(case=schema[path][method].as_strategy())
    def check(case):
        reply = case.call(timeout=30)
        # The document describes 503, of a failed model or a full service, and 504, of a deadline.
        checks = [check for check in CHECKS if check is not not_a_server_error or reply.status_code not in (503, 504)]
        case.validate_response(reply, checks=checks)

    check()
