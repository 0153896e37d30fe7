"""Which requests are let in, by the service's name in Host and the page's in Origin.

A browser sends what any page asks it to, and says in Origin whose page it was. A page whose own name has been turned
to point here (DNS rebinding) is of the same origin as the service: its name, in Host, gives it away.

Pages of allowed origins may also read the replies: the browser asks for that by CORS (Fetch standard, 3.3).
"""

import re
from ipaddress import IPv6Address

from service.api.proxies import parsed_address
from service.api.request import Headers, Reply, Request
from service.errors import Forbidden, MalformedHost
from service.settings import Settings

# RFC 3986, 3.2.2, with the bounds of DNS. A Host that came twice has been joined by a comma and a space.
_HOST = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[\w.~!$&'()*+,;=%-]{1,255})(:[0-9]{0,5})?")
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}

_READABLE = (
    b"access-control-expose-headers",
    b"Allow, Content-Encoding, Inference-Header-Content-Length, Location, Retry-After, WWW-Authenticate, X-Request-Id",
)
# Two hours are the longest that Chromium remembers.
_PREFLIGHT = [(b"access-control-allow-methods", b"DELETE, GET, HEAD, POST"), (b"access-control-max-age", b"7200")]


class HostRules:
    """The rules of this process. Where keys are needed, they keep other pages out, except of WebSockets."""

    def __init__(self, settings: Settings) -> None:
        self._names = frozenset(map(str.lower, settings.allowed_hosts))
        local = settings.host == "localhost" or ((bound_to := parsed_address(settings.host)) and bound_to.is_loopback)
        self._takes_any_name = "*" in self._names or not (self._names or local)
        self._origins = frozenset(map(str.lower, settings.allowed_origins))
        self._takes_any_page = "*" in self._origins
        # A cache must not give a page what was sent to another one, or to a program.
        self._vary: Headers = [(b"vary", b"origin")] if self._origins else []
        self._is_open = not settings.api_keys
        self._passed: bytes | None = b"localhost"  # the last Host that was right: nearly all are the same

    def check(self, request: Request) -> None:
        """Let the request pass, and note which CORS headers its reply has. Raises MalformedHost, Forbidden."""
        origin, host = request.headers.get(b"origin", b""), request.headers.get(b"host")
        allowed = origin and self._allows(origin)
        request.cors = self._vary
        if allowed:
            named = b"*" if self._takes_any_page else origin
            request.cors = [(b"access-control-allow-origin", named), _READABLE, *self._vary]
        if host != self._passed:
            self._check_host(host, request)
            self._passed = host or self._passed
        if origin and not allowed and (self._is_open or request.method == "WS"):
            page = request.header(b"origin").lower()
            scheme, _, authority = page.partition("://")
            if authority != request.header(b"host").lower().removesuffix(_DEFAULT_PORTS.get(scheme, "")):
                raise Forbidden(f"Origin is {page!r:.80}, which is not this host; RNN_ALLOWED_ORIGINS lists others")

    def preflight(self, request: Request) -> Reply | None:
        """The answer to a browser that asks whether a page of an allowed origin may make a call; None to others.

        Browsers ask without the page's key. Any header may be sent: those that the service does not know mean nothing.
        """
        asked = request.headers
        if request.method != "OPTIONS" or b"access-control-request-method" not in asked:
            return None
        if not self._allows(asked.get(b"origin", b"")):
            return None
        headers = [*_PREFLIGHT]
        if names := asked.get(b"access-control-request-headers"):
            headers.append((b"access-control-allow-headers", names))
        if b"access-control-request-private-network" in asked:
            headers.append((b"access-control-allow-private-network", b"true"))
        return Reply(200, b"text/plain", b"", headers)

    def _allows(self, origin: bytes) -> bool:
        return self._takes_any_page or origin.decode("latin-1").lower() in self._origins

    def _check_host(self, host: bytes | None, request: Request) -> None:
        if host is None and request.http_version == "1.0":
            return
        match = _HOST.fullmatch(host or b"")
        name = match[1].decode().lower() if match else ""
        address = parsed_address(name.strip("[]"))
        if not name or name.startswith("[") != isinstance(address, IPv6Address):
            raise MalformedHost(f"Host is {request.header(b'host')!r:.80}; expected one name or one address")
        if not (address or name == "localhost" or self._takes_any_name or name in self._names):
            message = "is no address and not localhost; RNN_ALLOWED_HOSTS lists the names that may be used"
            raise Forbidden(f"Host is {name!r:.80}, which {message}")
