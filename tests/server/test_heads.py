"""A head that is known must mean to the connection what it means to the parser, whatever stands in it and after it."""

import httptools
from hypothesis import example, given
from hypothesis import strategies as st

from service.server.heads import KnownHead

NAMES = st.sampled_from([b"Content-Length", b"content-length", b"X-Content-Length", b"Host", b"X", b"Content-Type"])
VALUES = st.sampled_from([b"0", b"1", b"7", b"12", b"x", b"application/json", b"7, 7", b"+7", b"07"])
HEADERS = st.lists(st.tuples(NAMES, VALUES), max_size=4)


class Parsed:
    def __init__(self, data: bytes) -> None:
        self.body, self.messages, self.headers = b"", 0, []
        self.ended = False
        parser = httptools.HttpRequestParser(self)
        try:
            parser.feed_data(data)
        except httptools.HttpParserError:
            self.messages = -1

    def on_message_begin(self) -> None:
        self.messages += 1

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.ended = True

    @property
    def is_one_whole(self) -> bool:
        return self.messages == 1 and self.ended


def head(headers: list[tuple[bytes, bytes]]) -> bytes:
    return b"POST /cell/step HTTP/1.1\r\n%b\r\n" % b"".join(b"%b: %b\r\n" % header for header in headers)


@given(HEADERS, st.binary(max_size=14), st.integers(0, 20), st.binary(max_size=20))
@example([(b"X-Content-Length", b"7"), (b"Content-Length", b"7")], b"1234567", 3, b"123")
@example([(b"Content-Length", b"4")], b"\r\n\r\n", 8, b"\r\n\r\nabcd")
def test_known_head_equals_parsed_head(headers, body, length, following):
    first = head(headers) + body
    parsed = Parsed(first)
    if not parsed.is_one_whole or parsed.body != body:
        return  # only such requests are remembered
    known = KnownHead.of(first, len(body))
    if known is None:
        return
    for data in (first, known.before + b"%d" % length + known.after + following, first + following, first[:-1]):
        found = known.body(data)
        if found is not None:
            again = Parsed(data)
            assert again.is_one_whole
            assert again.body == found
            assert [name for name, _ in again.headers] == [name for name, _ in parsed.headers]


def test_plain_head_is_known_with_any_length():
    known = KnownHead.of(head([(b"Host", b"a"), (b"Content-Length", b"2")]) + b"{}", 2)
    assert known is not None
    assert known.body(head([(b"Host", b"a"), (b"Content-Length", b"11")]) + b"0123456789 ") == b"0123456789 "
    assert known.body(head([(b"Host", b"b"), (b"Content-Length", b"2")]) + b"{}") is None
    assert known.body(head([(b"Host", b"a"), (b"Content-Length", b"3")]) + b"{}") is None
