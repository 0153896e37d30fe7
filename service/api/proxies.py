"""Whose request a trusted proxy has sent, by X-Forwarded-For.

Each proxy adds the address that it was called from at the right end. The client is the rightmost address that is no
trusted proxy's: what stands left of it may be the client's own invention.
"""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

MAX_BYTES, MAX_ENTRIES = 1024, 16  # of the header, from its right end
REMEMBERED = 4096

_ENTRY = re.compile(rb"[ \t]*(?:\[([0-9A-Fa-f:.]+)\](?::[0-9]+)?|([0-9.]+)(?::[0-9]+)?|([0-9A-Fa-f:.]+))[ \t]*")


class TrustedProxies:
    """The proxies whose X-Forwarded-For is believed; there may be none."""

    def __init__(self, networks: Sequence[IPv4Network | IPv6Network]) -> None:
        self._networks = networks
        # Few proxies and clients send most requests; memory is bounded by MAX_BYTES.
        self._trusts = lru_cache(REMEMBERED)(self._is_trusted)
        self._named = lru_cache(REMEMBERED)(self._named_client)

    def client_address(self, peer: str, headers: Mapping[bytes, bytes]) -> str:
        """The address of a request's client; peer is the connection's. Lines of a header are joined by commas."""
        peer = peer.removeprefix("::ffff:")  # IPv4 on a socket of IPv6
        forwarded = headers.get(b"x-forwarded-for") if self._networks else None
        return self._named(peer, forwarded[-MAX_BYTES:]) if forwarded and self._trusts(peer) else peer

    def _named_client(self, proxy: str, forwarded: bytes) -> str:
        entries = forwarded.rsplit(b",", MAX_ENTRIES)
        if len(forwarded) == MAX_BYTES or len(entries) > MAX_ENTRIES:
            del entries[0]  # it may be cut, or more than one
        for entry in filter(bytes.strip, reversed(entries)):
            match = _ENTRY.fullmatch(entry)
            address = parsed_address(match[match.lastindex or 0].decode()) if match else None
            if address is None:
                break  # the last proxy that can be named stands for whom it does not name
            proxy = str(getattr(address, "ipv4_mapped", None) or address)
            if not self._trusts(proxy):
                break
        return proxy

    def _is_trusted(self, text: str) -> bool:
        address = parsed_address(text)
        return address is not None and any(address in network for network in self._networks)


def parsed_address(name: str) -> IPv4Address | IPv6Address | None:
    with suppress(ValueError):
        return ip_address(name)
    return None
