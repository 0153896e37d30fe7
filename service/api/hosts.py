"""Which names of the service, in Host, and which pages of others, in Origin, may call it.

A browser sends what any page asks it to, and says in Origin whose page it was. A page whose own name has been turned
to point here (DNS rebinding) is of the same origin as the service: its name, in Host, gives it away.
"""

import re
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, ip_address

from service.api.request import Request
from service.errors import Forbidden, MalformedHost
from service.settings import Settings

# RFC 3986, 3.2.2, with the bounds of DNS. A Host that came twice has been joined by a comma and a space.
_HOST = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[\w.~!$&'()*+,;=%-]{1,255})(:[0-9]{0,5})?")
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


class HostRules:
    """The rules of this process. Where keys are needed, they keep other pages out, except of WebSockets."""

    def __init__(self, settings: Settings) -> None:
        self._names = frozenset(map(str.lower, settings.allowed_hosts))
        local = settings.host == "localhost" or ((bound_to := address_of(settings.host)) and bound_to.is_loopback)
        self._takes_any_name = "*" in self._names or not (self._names or local)
        self._origins = frozenset(map(str.lower, settings.allowed_origins))
        self._is_open = not settings.api_keys
        self._passed: bytes | None = b"localhost"  # the last Host that was right: nearly all are the same

    def check(self, request: Request) -> None:
        """Let the request pass. Raises MalformedHost, Forbidden."""
        host = request.headers.get(b"host")
        if host != self._passed:
            self._check_host(host, request)
            self._passed = host or self._passed
        if (origin := request.header(b"origin").lower()) and (self._is_open or request.method == "WS"):
            scheme, _, authority = origin.partition("://")
            own = request.header(b"host").lower().removesuffix(_DEFAULT_PORTS.get(scheme, ""))
            if authority != own and self._origins.isdisjoint((origin, "*")):
                raise Forbidden(f"Origin is {origin!r:.80}, which is not this host; RNN_ALLOWED_ORIGINS lists others")

    def _check_host(self, host: bytes | None, request: Request) -> None:
        if host is None and request.http_version == "1.0":
            return
        match = _HOST.fullmatch(host or b"")
        name = match[1].decode().lower() if match else ""
        address = address_of(name.strip("[]"))
        if not name or name.startswith("[") != isinstance(address, IPv6Address):
            raise MalformedHost(f"Host is {request.header(b'host')!r:.80}; expected one name or one address")
        if not (address or name == "localhost" or self._takes_any_name or name in self._names):
            message = "is no address and not localhost; RNN_ALLOWED_HOSTS lists the names that may be used"
            raise Forbidden(f"Host is {name!r:.80}, which {message}")


def address_of(name: str) -> IPv4Address | IPv6Address | None:
    with suppress(ValueError):
        return ip_address(name)
    return None
