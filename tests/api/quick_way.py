"""An application's quick way on one path, called as the server calls it."""

import asyncio
import json

from service.app import create_app
from service.settings import Settings

PLAIN = {b"content-type": b"application/json"}


class QuickWay:
    """The quick way, beside the application's models and sessions."""

    def __init__(self, path, repository, **settings):
        self.app = create_app(Settings(models=repository, request_log=False, **settings))
        self.way = self.app.quick[path]
        self.answers = self.way._answer
        self.registry = self.answers._inference.registry

    def load(self, name):
        version = self.registry.resolve(name, None)
        asyncio.run(self.registry.engine(version))
        return version

    def __call__(self, fields, headers=PLAIN):
        body = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
        headers = headers | {b"content-length": b"%d" % len(body)}
        answer = self.way(headers, body) if self.way.listens(headers) else None
        return answer and json.loads(answer.partition(b"\r\n\r\n")[2])
