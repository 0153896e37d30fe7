"""Bodies are bounded in size, in time, and in the bytes of all of them together."""

import asyncio
import gzip

import pytest

from service.api.bodies import Bodies, BodyBudget, Incoming
from service.api.request import Request
from service.errors import BodyTimeout, BodyTooLarge, ClientGone, ServiceDraining, ServiceFull
from tests.loop import in_loop

from .streams.fakes import Receives


def request(peer="a", **headers):
    named = {name.replace("_", "-").encode(): value for name, value in headers.items()}
    return Request("POST", "/", b"", named, peer, "r1")


def sent(*chunks, then=({"type": "http.request"},)):
    """A body that comes in chunks; what follows them, if anything does, is by default its end."""
    return Receives(*({"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks), *then)


def bodies(grace_seconds=5.0, budget=10**9):
    return Bodies(100_000, grace_seconds, 1000, BodyBudget(budget))


def read(receive, reader=None, **headers):
    asked, reader = request(**headers), reader or bodies()
    reader.refuse_too_large(asked)
    return asyncio.run(reader.read(asked, Incoming(asked, receive)))


async def turns(count=5):
    for _ in range(count):
        await asyncio.sleep(0)


def test_chunks_become_one_body():
    packed = gzip.compress(b"some text")
    assert read(sent(packed[:9], packed[9:]), content_encoding=b"GZIP") == b"some text"
    assert read(sent(b"one ", b"", b"two"), content_encoding=b"identity") == b"one two"


@pytest.mark.parametrize(
    ("chunks", "headers", "unread"),
    [
        ([b"x"], {"content_length": b"100001"}, 2),  # nothing is taken from the connection
        ([bytes(60_000)] * 9, {}, 8),
        ([gzip.compress(bytes(10**7))] * 3, {"content_encoding": b"gzip"}, 3),
    ],
)
def test_size_is_limited_while_reading(chunks, headers, unread):
    receive = sent(*chunks)
    with pytest.raises(BodyTooLarge, match="10000"):
        read(receive, **headers)
    assert len(receive.messages) == unread


def test_silent_body_is_not_waited_for():
    with pytest.raises(BodyTimeout, match=r"0.001 s and 1000 bytes/s; 3 bytes had arrived"):
        read(sent(b"abc", then=()), bodies(grace_seconds=0.001))


def test_client_that_hangs_up():
    with pytest.raises(ClientGone):
        read(sent(b"abc", then=[{"type": "http.disconnect"}]))


@in_loop
async def test_every_byte_earns_time():
    reader, receive, asked = bodies(), asyncio.Queue(), request()
    reading = asyncio.create_task(reader.read(asked, Incoming(asked, receive.get)))
    whens = []
    for chunk in (b"x", bytes(20_000)):
        receive.put_nowait({"type": "http.request", "body": chunk, "more_body": True})
        await turns()
        whens += [deadline.when() for deadline in reader.draining.waiting]
    receive.put_nowait({"type": "http.request"})
    assert len(await reading) == 20_001
    assert whens[1] - whens[0] == pytest.approx(20)


@in_loop
async def test_shutdown_ends_the_wait_for_a_body():
    reader, asked = bodies(), request()
    reading = asyncio.create_task(reader.read(asked, Incoming(asked, sent(b"abc", then=()))))
    await turns()
    reader.draining.announce()
    with pytest.raises(ServiceDraining):
        await reading
    assert not reader.draining.waiting


@in_loop
async def test_only_oldest_body_is_read_at_the_bound():
    budget = BodyBudget(100)
    first, second, third = requests = [request(peer) for peer in "abc"]
    for asked in requests:
        budget.begin(asked)
    await budget.grow(first, 60)
    await budget.grow(second, 30)
    growing = asyncio.create_task(budget.grow(second, 20))
    await turns()
    assert (growing.done(), budget.has_room(third, 10), budget.has_room(third, 11)) == (False, True, False)
    await budget.grow(first, 1000)
    assert budget.bytes == 1090
    budget.finish(first)  # and so the second is the oldest
    await growing
    budget.finish(second)
    assert (budget.bytes, budget.has_room(third, 10**6)) == (1110, True)
    for asked in requests * 2:
        budget.release(asked)
    assert (budget.bytes, budget._of_client, budget._unfinished) == (0, {}, {})


@in_loop
async def test_client_leaves_bytes_for_others():
    budget = BodyBudget(100)
    oldest, mine, also_mine, other = requests = [request(peer) for peer in "oaab"]
    for asked in requests:
        budget.begin(asked)
    await budget.grow(oldest, 1)
    await budget.grow(mine, 70)
    assert [budget.has_room(also_mine, size) for size in (5, 6)] == [True, False]
    assert budget.has_room(other, 29)
    waiting = asyncio.create_task(budget.grow(also_mine, 6))
    await turns()
    budget.begin(request("c"))  # a client that waits for its own share keeps only itself from beginning more
    with pytest.raises(ServiceFull):
        budget.begin(request("a"))
    budget.release(mine)
    await waiting
    assert budget.has_room(also_mine, 69)
    budget.begin(request("a"))


@in_loop
async def test_nobody_begins_while_others_wait_for_the_room_of_all():
    budget = BodyBudget(100)
    requests = [request(peer) for peer in "ab"]
    for asked, size in zip(requests, (60, 40), strict=True):
        budget.begin(asked)
        await budget.grow(asked, size)
    waiting = asyncio.create_task(budget.grow(requests[1], 1))
    await turns()
    with pytest.raises(ServiceFull):
        budget.begin(request("c"))
    waiting.cancel()
    await turns()
    budget.begin(request("c"))


@in_loop
async def test_wait_for_room_ends_with_the_deadline():
    reader = bodies(grace_seconds=0.001, budget=10)
    oldest, asked = request("a"), request("b")
    reader.budget.begin(oldest)
    await reader.budget.grow(oldest, 10)
    with pytest.raises(ServiceFull, match="fill their memory"):
        await reader.read(asked, Incoming(asked, sent(b"abc")))
    reader.budget.release(oldest)
    assert await reader.read(asked, Incoming(asked, sent(b"abc"))) == b"abc"
    assert reader.budget.bytes == 3


@in_loop
async def test_a_body_has_a_last_moment_and_waits_briefly_for_room():
    reader = bodies(grace_seconds=0.01, budget=10)
    receive, asked = asyncio.Queue(), request()
    reading = asyncio.create_task(reader.read(asked, Incoming(asked, receive.get)))
    begun = asyncio.get_running_loop().time()
    receive.put_nowait({"type": "http.request", "body": bytes(50_000), "more_body": True})  # earns 50 s
    await turns()
    (deadline,) = reader.draining.waiting
    assert deadline.when() <= begun + 60 * 0.01 + 0.01
    with pytest.raises(BodyTimeout):
        await reading
    # It still counts: who comes with many bytes waits no longer than the grace for room.
    other = request("b")
    receive.put_nowait({"type": "http.request", "body": bytes(50_000), "more_body": True})
    oldest = request("c")
    reader.budget.begin(oldest)
    with pytest.raises(ServiceFull):
        await reader.read(other, Incoming(other, receive.get))
