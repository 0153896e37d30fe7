"""What a body is, and what the client wants back."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.api.negotiation import JSON, SAFETENSORS, media_type, reply_encoding, reply_format, request_format
from service.errors import NotAcceptable, UnsupportedMediaType


@pytest.mark.parametrize(
    ("content_type", "expected"),
    [
        ("", JSON),
        ("application/json", JSON),
        ("Application/JSON; charset=UTF-8", JSON),
        ('application/json;charset="UTF-8"', JSON),
        ("application/vnd.safetensors", SAFETENSORS),
    ],
)
def test_request_format(content_type, expected):
    assert request_format(content_type.encode()) == expected


@pytest.mark.parametrize(
    "content_type",
    ["text/plain", "json", "application/json; charset=latin-1", ";", "application/x-ndjson", "application/x-ndjsonx"],
)
def test_other_content_types_are_refused(content_type):
    with pytest.raises(UnsupportedMediaType):
        request_format(content_type.encode())


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", SAFETENSORS),
        ("*/*", SAFETENSORS),
        ("application/*", SAFETENSORS),
        ("application/json", JSON),
        ("APPLICATION/JSON; charset=utf-8", JSON),
        ("application/vnd.safetensors;q=0, */*", JSON),
        ("text/html, application/json;q=0.9, */*;q=0.1", JSON),
        ("application/json;q=0.5, application/vnd.safetensors", SAFETENSORS),
        ("text/html, */*;q=0.1", SAFETENSORS),
    ],
)
def test_accept_chooses_the_format(accept, expected):
    assert reply_format(accept.encode(), SAFETENSORS) == expected


@pytest.mark.parametrize("accept", ["text/html", "*/*;q=0", "application/json;q=0, image/*", ";;,", "*/*;q=x"])
def test_nothing_acceptable(accept):
    with pytest.raises(NotAcceptable):
        reply_format(accept.encode(), JSON)


@pytest.mark.parametrize(
    ("accepted", "expected"),
    [
        ("", None),
        ("identity", None),
        ("gzip, deflate, br", "gzip"),
        ("gzip, zstd", "zstd"),
        ("gzip, zstd;q=0.5", "gzip"),
        ("zstd;q=0, gzip;q=0", None),
        ("zstd;q=0, *", "gzip"),
        ("*;q=0", None),
        ("*", "zstd"),
        ("zstd;q=nan, gzip;q=0", None),
        ("zstd;q=inf, gzip;q=0.1", "gzip"),
    ],
)
def test_reply_encoding(accepted, expected):
    assert reply_encoding(accepted.encode()) == expected


@given(st.binary(max_size=60))
def test_any_header_is_read(header):
    assert reply_encoding(header) in ("gzip", "zstd", None)
    assert media_type(header)
    with suppress(NotAcceptable, UnsupportedMediaType):
        assert reply_format(header, JSON) in (JSON, SAFETENSORS)
        assert request_format(header) in (JSON, SAFETENSORS)
