"""The floor of the web layer: bare ASGI under uvicorn that reads the whole body and writes a reply prepared beforehand.

`/<file>` is answered with that file of REPLIES, which holds the right answer. Run as
`python -m benchmarks.rivals.echo REPLIES PORT`.
"""

import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import uvicorn


class Echo:
    """Answers by path with bytes that were there before the request came."""

    def __init__(self, replies: Path) -> None:
        self._replies = {f"/{file.name}": file.read_bytes() for file in replies.iterdir()}

    async def __call__(
        self, scope: Mapping[str, Any], receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]
    ) -> None:
        """Read the whole body into one buffer, as a decoder would need it, and reply."""
        parts = []
        message = await receive()
        while message.get("more_body"):
            parts.append(message["body"])
            message = await receive()
        b"".join([*parts, message["body"]])
        body = self._replies.get(scope["path"], b"ready")
        headers = [(b"content-type", b"application/octet-stream"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


if __name__ == "__main__":
    options = {"loop": "uvloop", "http": "httptools", "lifespan": "off", "access_log": False, "server_header": False}
    uvicorn.run(Echo(Path(sys.argv[1])), host="127.0.0.1", port=int(sys.argv[2]), log_level="warning", **options)
