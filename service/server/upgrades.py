"""Offers of another protocol: which of them is a WebSocket's handshake, and how the others are ignored.

The parser stops after a head that offers another protocol, and takes the body for that protocol's. A new parser that is
given a head with the same framing goes on where it has stopped.
"""

from collections.abc import Sequence

Headers = Sequence[tuple[bytes, bytes]]

MAX_HEADERS = 128
MAX_LINE_BYTES = 8192 - 8
"""What the websockets library takes of a handshake, which it is given anew."""


def handshake_fault(headers: Headers) -> str:
    """What is wrong with the head of a WebSocket's handshake; empty if nothing is."""
    if {name for name, _ in headers} & {b"content-length", b"transfer-encoding"}:
        return "A WebSocket handshake has no body."
    if len(headers) > MAX_HEADERS or max(len(name) + len(value) for name, value in headers) > MAX_LINE_BYTES:
        return "The headers of this WebSocket handshake are too many or too long."
    return ""


def head_with_framing(headers: Headers, version: str, *, keeps: bool) -> bytes:
    """A head that offers nothing, and whose body is framed as that of a request with these headers."""
    lines = [b"%b: %b\r\n" % line for line in headers if line[0] in (b"content-length", b"transfer-encoding")]
    if not keeps:
        lines.append(b"connection: close\r\n")
    return b"POST / HTTP/%b\r\n%b\r\n" % (version.encode(), b"".join(lines))
