"""Who may do what: bearer tokens, compared in constant time."""

from collections.abc import Iterable
from hashlib import blake2b
from hmac import compare_digest

from service.api.request import Request
from service.errors import Unauthorized

# What probes, scrapers and people read before they have a key; none of it holds a client's data.
OPEN = ("/health/", "/v2/health/", "/metrics", "/docs", "/openapi.json", "/problems/", "/static-offline-docs/")


class Keys:
    """The keys of this process. Without api keys everybody may call; without admin keys nobody is admin."""

    def __init__(self, api: Iterable[str], admin: Iterable[str]) -> None:
        self._api = [key.encode() for key in api]
        self._admin = [key.encode() for key in admin]

    def check(self, request: Request) -> None:
        """Let the request pass, and note whose it is and whether it is an admin's. Raises Unauthorized."""
        if not self._api and not self._admin:
            return
        scheme, _, token = request.headers.get(b"authorization", b"").partition(b" ")
        given = token.strip() if scheme.lower() == b"bearer" else b""
        request.admin = _among(given, self._admin)
        if request.admin or _among(given, self._api):
            request.owner = blake2b(given, digest_size=16).digest()
        elif request.path != "/" and not request.path.startswith(OPEN):
            if given:
                raise Unauthorized("the key in Authorization is not one of this service's")
            if self._api:
                raise Unauthorized("this service needs a key: send Authorization: Bearer <key>")


def _among(given: bytes, keys: list[bytes]) -> bool:
    # All of them, always: how long this takes must not tell which key matched.
    return sum(compare_digest(given, key) for key in keys) > 0
