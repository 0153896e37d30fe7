"""Where a deployment is: the parts of its URL."""

import ssl
from dataclasses import dataclass
from functools import cached_property
from urllib.parse import urlsplit


class BadTarget(Exception):
    """The URL is not that of a deployment; the message says why."""


@dataclass(frozen=True)
class Target:
    """Scheme, host and port, and the path that goes before every call (`` or `/prefix`), with the bearer token.

    The token does not show in the representation.
    """

    secure: bool
    host: str
    port: int
    authority: str
    prefix: str
    headers: tuple[str, ...]

    @classmethod
    def parse(cls, url: str, key: str | None) -> "Target":
        """`http://host:port/prefix`, or https. Raises BadTarget."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise BadTarget(f"{url}: {error}") from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise BadTarget(f"{url} is not a URL such as http://127.0.0.1:8000")
        if parts.username is not None or parts.query or parts.fragment:
            raise BadTarget("the URL must hold no user, query or fragment; a key goes into --key or RNN_BENCH_KEY")
        secure = parts.scheme == "https"
        lines = [f"Host: {parts.netloc}", "User-Agent: rnn-service-bench"]
        if key:
            lines.append(f"Authorization: Bearer {key}")
        if not all(line.isascii() and line.isprintable() for line in lines):
            raise BadTarget("the URL and the key may hold printable ASCII characters alone")
        return cls(
            secure, parts.hostname, port or (443 if secure else 80), parts.netloc, parts.path.rstrip("/"), tuple(lines)
        )

    def __repr__(self) -> str:
        return f"Target({self.url})"

    @property
    def url(self) -> str:
        """As people write it."""
        return f"{'https' if self.secure else 'http'}://{self.authority}{self.prefix}"

    @cached_property
    def ssl_context(self) -> ssl.SSLContext | None:
        """What checks the certificate; None over plain HTTP."""
        return ssl.create_default_context() if self.secure else None

    def head(self, method: str, path: str, *headers: str) -> bytes:
        """The head of a request, in bytes; path as it goes over the wire."""
        lines = [f"{method} {self.prefix}{path} HTTP/1.1", *self.headers, *headers, "", ""]
        return "\r\n".join(lines).encode("ascii")
