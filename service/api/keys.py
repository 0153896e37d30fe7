"""Who may do what: bearer tokens, compared in constant time."""

from collections.abc import Iterable
from hashlib import blake2b
from hmac import compare_digest
from typing import NamedTuple

from service.api.exchange import Exchange
from service.errors import Forbidden, Unauthorized

# What probes, scrapers and people read before they have a key; none of it holds a client's data.
_OPEN = ("/health/", "/metrics", "/docs", "/openapi.json", "/problems/", "/static-offline-docs/")


class Caller(NamedTuple):
    """Whose a request is: the digest of a key, and whether that is an admin's."""

    owner: bytes
    is_admin: bool


NOBODY = Caller(b"", is_admin=False)
"""The caller of an open service."""


class Keys:
    """The keys of this process. Without api keys everybody may call; without admin keys nobody is admin."""

    def __init__(self, api: Iterable[str], admin: Iterable[str]) -> None:
        self._api = [key.encode() for key in api]
        self._admin = [key.encode() for key in admin]

    def identify(self, authorization: bytes) -> Caller | None:
        """Whose a request with this header is; None if it brings none of the keys, and there are keys."""
        if not self._api and not self._admin:
            return NOBODY
        scheme, _, token = authorization.partition(b" ")
        given = token.strip() if scheme.lower() == b"bearer" else b""
        is_admin = _among(given, self._admin)
        if not (_among(given, self._api) or is_admin):
            return None
        return Caller(blake2b(given, digest_size=16).digest(), is_admin)

    def check(self, exchange: Exchange) -> None:
        """Let the request pass, and note whose it is and whether it is an admin's. Raises Unauthorized."""
        authorization = exchange.headers.get(b"authorization", b"")
        caller = self.identify(authorization)
        if caller is not None:
            exchange.owner, exchange.admin = caller
            return
        if exchange.scope["path"] == "/" or exchange.scope["path"].startswith(_OPEN):
            return
        scheme, _, token = authorization.partition(b" ")
        if scheme.lower() == b"bearer" and token.strip():
            raise Unauthorized("the key in Authorization is not one of this service's")
        if self._api:
            raise Unauthorized("this service needs a key: send Authorization: Bearer <key>")


def require_admin(exchange: Exchange) -> None:
    """Raise Forbidden unless the request came with an admin key."""
    if not exchange.admin:
        raise Forbidden("this call needs one of the keys in RNN_ADMIN_KEYS")


def _among(given: bytes, keys: list[bytes]) -> bool:
    # All of them, always: how long this takes must not tell which key matched.
    return sum(compare_digest(given, key) for key in keys) > 0
