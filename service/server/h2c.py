"""Offers of HTTP/2 over clear text, which are turned down."""

import re

_H2C = re.compile(rb"(\r\n)Upgrade:([ \t]*h2c)", re.IGNORECASE)


def without_h2c(data: bytes) -> bytes:
    """Headers that offer HTTP/2 over clear text, as Java's client and curl --http2 do, with the offer crossed out.

    It may be ignored (RFC 9110, 7.8), but the parser would take what follows for another protocol and lose the body.
    """
    end = data.find(b"\r\n\r\n")
    end = len(data) if end < 0 else end
    if not _H2C.search(data, 0, end):
        return data
    return _H2C.sub(rb"\1X-Ignored:\2", data[:end]) + data[end:]
