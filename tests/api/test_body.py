"""Bodies: decompressed, limited before they are whole, and not waited for for ever."""

import asyncio
import gzip

import pytest
from backports import zstd
from hypothesis import given
from hypothesis import strategies as st
from service.api.body import BodyLimits, read_body
from service.api.exchange import Exchange

from service.errors import BodyTimeout, BodyTooLarge, ClientGone, MalformedBody, ServiceDraining, UnsupportedMediaType

LIMITS = BodyLimits(max_bytes=100_000, grace_seconds=5, min_bytes_per_second=1000)


def exchange_of(chunks, encoding="", headers=(), then=None):
    """A request whose body arrives in chunks; `then` is what follows them instead of the end."""
    messages = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    messages.append(then or {"type": "http.request", "body": b"", "more_body": False})
    taken = iter(messages)

    async def receive():
        message = next(taken)
        if message == "silence":
            await asyncio.Event().wait()
        return message

    async def send(message):
        raise AssertionError(message)

    encoded = [(b"content-encoding", encoding.encode())] if encoding else []
    exchange = Exchange({"headers": [*encoded, *headers]}, receive, send, "r1")
    return exchange, taken


def read(chunks, limits=LIMITS, **kwargs):
    exchange, _ = exchange_of(chunks, **kwargs)
    return asyncio.run(read_body(exchange, limits))


def cut(data: bytes, places: list[int]) -> list[bytes]:
    ends = sorted({min(place, len(data)) for place in places} | {len(data)})
    return [data[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]


@given(st.binary(max_size=3000), st.sampled_from(["", "gzip", "zstd"]), st.lists(st.integers(0, 3000), max_size=5))
def test_a_body_is_the_same_however_it_is_packed_and_cut(data, encoding, places):
    packed = {"": data, "gzip": gzip.compress(data), "zstd": zstd.compress(data)}[encoding]
    assert read(cut(packed, places), encoding=encoding) == data


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("zstd", zstd.compress)])
def test_several_members_are_one_body(encoding, pack):
    assert read([pack(b"one ") + pack(b"two")], encoding=encoding) == b"one two"


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("zstd", zstd.compress)])
def test_a_bomb_is_noticed_before_it_is_whole(encoding, pack):
    bomb = pack(bytes(50_000_000))
    with pytest.raises(BodyTooLarge, match="more than 100000 bytes"):
        read([bomb], encoding=encoding)


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("zstd", zstd.compress)])
def test_truncated_and_garbled_data(encoding, pack):
    packed = pack(b"some text that is long enough" * 9)
    with pytest.raises(MalformedBody, match="ends too early"):
        read([packed[:-3]], encoding=encoding)
    with pytest.raises(MalformedBody, match=f"is not {encoding} data"):
        read([b"no such data at all"], encoding=encoding)


def test_a_declared_length_over_the_limit_is_refused_unread():
    exchange, taken = exchange_of([b"x"], headers=[(b"content-length", b"100001")])
    with pytest.raises(BodyTooLarge, match="100001"):
        asyncio.run(read_body(exchange, LIMITS))
    assert len(list(taken)) == 2  # nothing was taken from the connection


def test_an_undeclared_length_over_the_limit_is_refused_when_passed():
    exchange, taken = exchange_of([bytes(60_000)] * 9)
    with pytest.raises(BodyTooLarge):
        asyncio.run(read_body(exchange, LIMITS))
    assert len(list(taken)) == 8


def test_a_silent_body_is_not_waited_for():
    patience = BodyLimits(max_bytes=1000, grace_seconds=0.01, min_bytes_per_second=1000)
    with pytest.raises(BodyTimeout, match="3 bytes had arrived"):
        read([b"abc"], limits=patience, then="silence")


def test_a_hang_up_is_nobody_left_to_answer():
    with pytest.raises(ClientGone):
        read([b"abc"], then={"type": "http.disconnect"})


def test_other_encodings_are_refused():
    with pytest.raises(UnsupportedMediaType, match="'br'"):
        read([b""], encoding="br")


def test_a_half_body_is_answered_when_the_service_goes_down():
    limits = BodyLimits(max_bytes=1000, grace_seconds=5, min_bytes_per_second=1000)
    exchange, _ = exchange_of([b"abc"], then="silence")

    async def run():
        reading = asyncio.create_task(read_body(exchange, limits))
        while not limits.draining.waiting:
            await asyncio.sleep(0)
        limits.draining.start()
        await reading

    with pytest.raises(ServiceDraining):
        asyncio.run(run())
    assert not limits.draining.waiting
