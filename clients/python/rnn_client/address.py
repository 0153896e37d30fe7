"""Where a service is, how to speak to it over HTTP and WebSocket, and what it means when that fails."""

import ssl
from dataclasses import dataclass
from typing import Any

import httpx
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from rnn_client.errors import ClientError, ConnectionLost, StreamClosed, service_error

HTTP_FAILURES = (httpx.TimeoutException, httpx.NetworkError, httpx.RemoteProtocolError, httpx.ProxyError)
"""What it means for a request to have no answer."""

STREAM_FAILURES = (ConnectionClosed, InvalidHandshake, EOFError, OSError, ClientError)
"""How a stream can break off; time-outs are OSErrors."""

_NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


@dataclass(frozen=True)
class Address:
    """A service's base URL, the key to it, the seconds that an answer may take, and for TLS whom to trust."""

    url: str
    api_key: str | None
    timeout: float
    ssl_context: ssl.SSLContext | None

    @property
    def http_options(self) -> dict[str, Any]:
        """For httpx's clients."""
        return {
            "base_url": self.url,
            "timeout": self.timeout,
            "verify": self.ssl_context or True,
            # Floats hardly compress, and packing them takes longer than sending them.
            "headers": self._headers | {"accept-encoding": "identity"},
        }

    @property
    def stream_url(self) -> str:
        """Where streams of steps are."""
        return self.url.replace("http", "ws", 1).rstrip("/") + "/cell/stream"

    @property
    def stream_options(self) -> dict[str, Any]:
        """For websockets' `connect`. A stream bounds what is under way, so no queue or frame needs a bound."""
        return {
            "additional_headers": self._headers,
            "ssl": self.ssl_context if self.url.startswith("https") else None,
            "open_timeout": self.timeout,
            "close_timeout": 1.0,
            "compression": None,
            "max_size": None,
            "max_queue": None,
        }

    @property
    def _headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.api_key}"} if self.api_key else {}

    def lost(self, error: Exception) -> ConnectionLost:
        """The error of a request that has no answer."""
        reason = str(error) or type(error).__name__
        return ConnectionLost(f"no answer from {self.url}: {reason}", settled=isinstance(error, _NEVER_SENT))

    def broken_off(self, error: Exception) -> ClientError:
        """The error of a stream that broke off: one of `STREAM_FAILURES`."""
        if isinstance(error, ClientError):
            return error
        if isinstance(error, InvalidStatus):
            response = error.response
            headers = {name.lower(): value for name, value in response.headers.raw_items()}
            return service_error(response.status_code, headers, bytes(response.body or b""))
        if isinstance(error, ConnectionClosed) and error.rcvd is not None:
            return StreamClosed(error.rcvd.code, error.rcvd.reason)
        return self.lost(error)
