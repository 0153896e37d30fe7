"""Problem documents become the errors that users catch."""

import json
import re
from pathlib import Path

import pytest

import rnn_client
from rnn_client.errors import ServiceError, service_error

PROBLEMS = Path(__file__).parents[3] / "docs" / "problems"


def answered(status, document, **headers):
    body = json.dumps(document).encode()
    return service_error(status, {"content-type": "application/problem+json"} | headers, body)


def test_problem_becomes_its_own_error():
    problem = {"type": "/problems/step-out-of-order", "title": "Step out of order", "status": 409}
    problem |= {"detail": "step is 9; this session expects 4", "expected": 4, "request_id": "r1"}
    error = answered(409, problem)
    assert type(error) is rnn_client.StepOutOfOrder
    assert (error.status, error.expected, error.request_id, str(error)) == (409, 4, "r1", problem["detail"])
    assert error.problem == problem


def test_unknown_problem_is_service_error():
    error = answered(418, {"type": "/problems/new", "title": "New", "status": 418, "detail": "new"})
    assert (type(error), error.title) == (ServiceError, "New")


@pytest.mark.parametrize("body", [b"<h1>Bad Gateway</h1>", b"", b"[1]", b'{"status": "down"}'])
@pytest.mark.parametrize("kind", ["text/html", "application/json"])
def test_proxy_page_is_described_by_status(body, kind):
    error = service_error(502, {"content-type": kind}, body)
    assert (error.status, error.detail, error.transient) == (502, "502 Bad Gateway", True)


@pytest.mark.parametrize(("text", "seconds"), [("3", 3.0), ("", None), ("Fri, 31 Dec 1999 23:59:59 GMT", None)])
def test_retry_after_in_seconds(text, seconds):
    assert answered(503, {"detail": "full"}, **{"retry-after": text}).retry_after == seconds


def test_every_error_has_a_page_of_its_status():
    for slug, kind in ServiceError.kinds.items():
        page = (PROBLEMS / f"{slug}.md").read_text()
        documented = re.match(r"# .* \((\d+)\)", page)[1]
        assert kind.__doc__.startswith(documented), slug
