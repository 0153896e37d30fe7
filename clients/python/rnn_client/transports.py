"""The input and output of both clients: HTTP requests, WebSocket connections, waiting.

The two transports have the same methods, all coroutines. Those of the blocking one never suspend: they block.
"""

import asyncio
import ssl
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import httpx
from websockets.asyncio.client import connect as connect_async
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.sync.client import connect as connect_blocking

from rnn_client.errors import ClientError, ConnectionLost, StreamClosed, service_error

HTTP_FAILURES = (httpx.TimeoutException, httpx.NetworkError, httpx.RemoteProtocolError, httpx.ProxyError)
"""A request that has no answer raises one of these."""

STREAM_FAILURES = (ConnectionClosed, InvalidHandshake, EOFError, OSError, ClientError)
"""A stream that breaks off raises one of these; time-outs are OSErrors."""

Message = str | bytes
Exchange = Callable[[Iterable[Message]], Awaitable[Message]]
"""A WebSocket: send messages, and receive one. Raises TimeoutError if that takes too long."""

_NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


def seconds(value: float, name: str, least: float) -> float:
    """A time that can be waited for. Raises ValueError."""
    if not isinstance(value, int | float) or not value >= least:
        raise ValueError(f"{name} is {value!r:.80}; expected at least {least:g} seconds")
    return min(value, 1e8)  # three years: longer waits do not fit into every system call


@dataclass
class Address:
    """A service's URL and key, the seconds that an answer may take, and the authorities to trust for https."""

    url: str
    api_key: str | None
    timeout: float
    ssl_context: ssl.SSLContext | None

    def __post_init__(self) -> None:
        try:
            url = httpx.URL(self.url)
            url.host.encode("idna")
        except (httpx.InvalidURL, TypeError, UnicodeError):
            url = httpx.URL()
        sound = url.scheme in ("http", "https") and url.host and 0 <= (url.port or 0) < 2**16
        if not sound or url.query or url.fragment or " " in self.url:
            raise ValueError(f"url is {self.url!r:.200}; expected http://host:port or https://host:port")
        self.url = str(url).rstrip("/")
        key = self.api_key or ""
        if not (isinstance(key, str) and key.isascii() and key.isprintable() and key == key.strip()):
            raise ValueError("api_key holds what no key can hold; expected printable ASCII text")
        self.headers = {"authorization": f"Bearer {key}"} if key else {}
        self.timeout = seconds(self.timeout, "timeout", 0.001)

    @property
    def http_options(self) -> dict[str, Any]:
        """Arguments of httpx's clients."""
        return {
            "base_url": self.url,
            "timeout": self.timeout,
            "verify": self.ssl_context or True,
            # Floats hardly compress, and packing them takes longer than sending them.
            "headers": self.headers | {"accept-encoding": "identity"},
        }

    @property
    def stream_options(self) -> dict[str, Any]:
        """Arguments of websockets' `connect`. A stream bounds what is in flight, so queues and frames need no bound."""
        return {
            "uri": self.url.replace("http", "ws", 1) + "/cell/stream",
            "additional_headers": self.headers,
            "ssl": self.ssl_context if self.url.startswith("https") else None,
            "open_timeout": self.timeout,
            "close_timeout": 1.0,
            "compression": None,
            "max_size": None,
            "max_queue": None,
        }

    def lost(self, error: Exception) -> ConnectionLost:
        """The error of a request that has no answer."""
        reason = str(error) or type(error).__name__
        return ConnectionLost(f"no answer from {self.url}: {reason}", settled=isinstance(error, _NEVER_SENT))

    def broken_off(self, error: Exception) -> ClientError:
        """The error of a stream that raised one of `STREAM_FAILURES`."""
        if isinstance(error, ClientError):
            return error
        if isinstance(error, InvalidStatus):
            response = error.response
            headers = {name.lower(): value for name, value in response.headers.raw_items()}
            return service_error(response.status_code, headers, bytes(response.body or b""))
        if isinstance(error, ConnectionClosed) and error.rcvd is not None:
            return StreamClosed(error.rcvd.code, error.rcvd.reason)
        return self.lost(error)


class AsyncTransport:
    """I/O that waits in an event loop."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self._http = httpx.AsyncClient(**address.http_options)

    async def request(self, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> httpx.Response:
        return await self._http.request(method, path, content=body, headers=headers)

    async def lines(self, path: str, body: bytes, headers: Mapping[str, str]) -> AsyncGenerator[str, None]:
        """The lines of a reply, as they come. Raises ServiceError for one that is no stream."""
        async with self._http.stream("POST", path, content=body, headers=headers) as reply:
            if reply.status_code >= 400:
                raise service_error(reply.status_code, reply.headers, await reply.aread())
            async for line in reply.aiter_lines():
                yield line

    @asynccontextmanager
    async def connect(self) -> AsyncGenerator[Exchange, None]:
        async with connect_async(**self.address.stream_options) as websocket:

            async def exchange(messages: Iterable[Message]) -> Message:
                with suppress(ConnectionClosed):  # what came before the end can still be received, and says why
                    for message in messages:
                        await websocket.send(message)
                async with asyncio.timeout(self.address.timeout):
                    return await websocket.recv()

            yield exchange

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def close(self) -> None:
        await self._http.aclose()


class BlockingTransport:
    """I/O that blocks its thread."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self._http = httpx.Client(**address.http_options)

    async def request(self, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> httpx.Response:
        return self._http.request(method, path, content=body, headers=headers)

    async def lines(self, path: str, body: bytes, headers: Mapping[str, str]) -> AsyncGenerator[str, None]:
        with self._http.stream("POST", path, content=body, headers=headers) as reply:
            if reply.status_code >= 400:
                raise service_error(reply.status_code, reply.headers, reply.read())
            for line in reply.iter_lines():
                yield line

    @asynccontextmanager
    async def connect(self) -> AsyncGenerator[Exchange, None]:
        with connect_blocking(**self.address.stream_options) as websocket:

            async def exchange(messages: Iterable[Message]) -> Message:
                with suppress(ConnectionClosed):
                    for message in messages:
                        websocket.send(message)
                reply: Message = websocket.recv(self.address.timeout)
                return reply

            yield exchange

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)  # noqa: ASYNC251

    async def close(self) -> None:
        self._http.close()


Transport = AsyncTransport | BlockingTransport
