"""Generations that fail: what had run is sent, and then the error."""

import asyncio
import json

import numpy as np

from service.app import create_app
from service.settings import Settings

from .streams.fakes import Receives

CONFIG = {"kind": "gru", "input_size": 2, "hidden_size": 3, "head": {"out_features": 2}}


class Breaks:
    """An engine that fails by a fault of its own at its third run."""

    def __init__(self, engine):
        self._engine = engine
        self._runs = 0

    def __getattr__(self, name):
        return getattr(self._engine, name)

    def run(self, rows):
        self._runs += 1
        if self._runs == 3:
            raise ZeroDivisionError
        self._engine.run(rows)


def test_internal_error_follows_the_lines(write_model, tmp_path):
    write_model("m", CONFIG)
    application = create_app(Settings(models=tmp_path), None)
    registry = application.posts["/rnn/generate"].inference.registry
    found = []

    async def send(message):
        found.append(message)

    async def generate():
        version = registry.resolve("m", None)
        version.engine = Breaks(await registry.engine(version))
        body = json.dumps({"inputs": np.ones((1, 2)).tolist(), "steps": 5}).encode()
        headers = [
            (b"host", b"localhost"),
            (b"accept", b"application/x-ndjson"),
            (b"content-type", b"application/json"),
        ]
        scope = {"type": "http", "method": "POST", "path": "/rnn/generate", "query_string": b"", "headers": headers}
        await application(scope, Receives({"type": "http.request", "body": body}), send)

    asyncio.run(generate())
    assert found[0]["status"] == 200
    assert not found[-1]["more_body"]
    *lines, last = map(json.loads, b"".join(message["body"] for message in found[1:]).splitlines())
    assert [line["step"] for line in lines] == [1, 2]
    assert last["error"]["type"] == "/problems/internal-error"
