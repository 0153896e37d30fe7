"""Heads of requests, above all those that offer another protocol and those that come again and again; of replies."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from service.api.request import Reply, Request

Headers = Sequence[tuple[bytes, bytes]]

MAX_KNOWN_BYTES = 2048

_LENGTH = re.compile(rb"\r\ncontent-length: ([0-9]{1,5})\r\n", re.IGNORECASE)
_END = b"\r\n\r\n"


class KnownHead(NamedTuple):
    """The bytes of a head, but for the digits of its Content-Length: most clients of a kept connection send no others.

    What is known of the request that it came with holds for each that repeats it, so the parser can be left out, whose
    calls into Python take a tenth of a step's time.
    """

    before: bytes
    after: bytes

    @classmethod
    def of(cls, data: bytes, size: int) -> "KnownHead | None":
        """The head of a request that the parser has found to be all of data, with a body of so many bytes."""
        head = data[: len(data) - size]
        length = _LENGTH.search(head) if len(head) <= MAX_KNOWN_BYTES else None
        if length is None or int(length[1]) != size or head.find(_END) != len(head) - len(_END):
            return None
        return cls(head[: length.start(1)], head[length.end(1) :])

    def body(self, data: bytes) -> bytes | None:
        """The body of a request that is all of data and has this head; None of any other."""
        begin = len(self.before)
        end = data.find(self.after, begin, begin + 5 + len(self.after))
        if end < 0 or not data.startswith(self.before) or not (digits := data[begin:end]).isdigit():
            return None
        body = data[end + len(self.after) :]
        return body if len(body) == int(digits) else None


def parse_on_within_body(protocol: Any, headers: Headers) -> None:
    """Let a parser go on after a head with these headers, as if that had not offered another protocol.

    The one before stops there, and takes the body for that protocol's. Callbacks for a head are to be ignored.
    """
    before = protocol.parser
    lines = [b"%b: %b\r\n" % line for line in headers if line[0] in (b"content-length", b"transfer-encoding")]
    if not before.should_keep_alive():
        lines.append(b"connection: close\r\n")
    protocol.parser = parser = httptools.HttpRequestParser(protocol)
    parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
    parser.feed_data(b"POST / HTTP/%b\r\n%b\r\n" % (before.get_http_version().encode(), b"".join(lines)))


def content_length(headers: Headers) -> int:
    """The declared size of a body, 0 without one; a sound one may have more leading zeros than `int` takes digits."""
    return next((int(value.lstrip(b"0") or b"0") for name, value in headers if name == b"content-length"), 0)


def is_plain(headers: Headers, max_bytes: int) -> bool:
    """Whether there is a Host, and a body that is neither compressed nor a stream nor known to exceed max_bytes."""
    has_host = False
    for name, value in headers:
        if name == b"content-encoding" or (name == b"content-type" and b"ndjson" in value.lower()):
            return False
        if name == b"content-length" and int(value.lstrip(b"0") or b"0") > max_bytes:
            return False
        has_host = has_host or name == b"host"
    return has_host


def reply_head(reply: Reply, size: int, request: Request, default: Headers, *, keeps: bool) -> bytes:
    """The head of a reply with a body of so many bytes, on a connection that is kept or closed after it; as by ASGI."""
    head = STATUS_LINE[reply.status]
    for line in default:
        head += b"%b: %b\r\n" % line
    framing = (reply.media_type, size, request.request_id.encode())
    head += b"content-type: %b\r\ncontent-length: %d\r\nx-request-id: %b\r\n" % framing
    for line in (*reply.headers, *request.cors):
        head += b"%b: %b\r\n" % line
    return head + (b"\r\n" if keeps else b"connection: close\r\n\r\n")
