"""Requests by ASGI that other tests do not reach: what is told, and how long a connection is held for it."""

import asyncio
import json

import pytest

from service.app import create_app
from service.settings import Settings

from .streams.fakes import Receives

CHUNKED = (b"transfer-encoding", b"chunked")


@pytest.fixture
def call(tmp_path):
    """What is sent back to a POST whose body comes in these messages; the client then waits."""
    application = create_app(Settings(models=tmp_path), None)

    def call_one(path, *messages, headers=(CHUNKED,)):
        found = []

        async def send(message):
            found.append(message)

        scope = {"type": "http", "http_version": "1.1", "method": "POST", "path": path, "raw_path": path.encode()}
        scope |= {"query_string": b"", "headers": [(b"host", b"localhost"), *headers]}
        asyncio.run(application(scope, Receives(*messages), send))
        return found

    return call_one


def test_route_that_has_read_its_body_lets_the_connection_go(call):
    head, *pieces = call("/v2/repository/index", {"type": "http.request", "body": b'{"x":1}'})
    assert head["status"] == 400
    assert (b"connection", b"close") not in head["headers"]
    (piece,) = pieces
    assert json.loads(piece["body"]) == {"error": "x is not a field of this request; the fields are ready"}


def test_client_that_still_sends_is_told_that_nobody_reads_on(call):
    head, *_ = call("/v2/nothing", {"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.request"})
    assert head["status"] == 404
    assert (b"connection", b"close") in head["headers"]
