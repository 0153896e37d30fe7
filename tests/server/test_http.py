"""One HTTP connection, by the bytes that come and go: directly or by ASGI, whole or cut anywhere."""

import asyncio
import inspect
import re
import socket
import tomllib
from contextlib import contextmanager
from importlib.metadata import version
from itertools import count

import pytest
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from service.api.accounting import Accounting
from service.api.application import Application
from service.api.bodies import Bodies, BodyBudget
from service.api.hosts import HostRules
from service.api.keys import Keys
from service.api.metrics import Metrics
from service.api.proxies import TrustedProxies
from service.api.readiness import Draining, Readiness
from service.api.request import Reply
from service.errors import ClientGone
from service.server import flow
from service.server.flow import SLICE_BYTES, Paced, PipelineFlow
from service.server.http import DIRECT_BYTES, HttpConnection
from service.server.websocket import GuardedWebSocket
from service.settings import Settings
from service.stores.memory import MemoryStore
from tests.e2e.running import ROOT
from tests.loop import in_loop

from .transport import Transport, turns

BY_ASGI = b"Content-Encoding: identity\r\n"
"""A header that changes nothing but the entrance."""

OFFERS = [b"foo", b"TLS/1.0, more/2", b"h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA", b"websocket"]
"""The last one without a key, and no GET."""
LENGTH = b"Content-Length: 6\r\n%b\r\nabcdef"
CHUNKED = b"Transfer-Encoding: chunked\r\n%b\r\n4\r\nabcd\r\n2\r\nef\r\n0\r\n\r\n"


@pytest.fixture(autouse=True)
def clock_stands_still(monkeypatch):
    monkeypatch.setattr(flow, "perf_counter", lambda: 0.0)


def post(path=b"/echo", headers=b"", body=b"abc", request_id=b"r1"):
    head = b"POST %b HTTP/1.1\r\nHost: a\r\nX-Request-Id: %b\r\n%bContent-Length: %d\r\n\r\n"
    return head % (path, request_id, headers, len(body)) + body


async def echo(request):
    return Reply(200, b"text/plain", request.body)


async def wait(request):
    await turns(3)
    return await echo(request)


async def work(request):
    """As inference does: watch, in a task, whether anybody waits for the result."""
    await asyncio.create_task(request.hung_up())
    raise ClientGone


@contextmanager
def connected():
    """A connection to an application that echoes bodies, at once or after a wait; its transport; the log's entries."""
    entries = []
    application = Application(
        FastAPI(),
        posts={"/echo": echo, "/wait": wait, "/work": work},
        streams={},
        sockets={},
        admissions={},
        bodies=Bodies(10**6, 5, 1000, BodyBudget(10**9)),
        proxies=TrustedProxies(()),
        hosts=HostRules(Settings(allowed_hosts=("a",))),
        keys=Keys([], []),
        accounting=Accounting(Metrics(), entries.append),
        readiness=Readiness(Draining(), MemoryStore(1), []),
    )
    config = uvicorn.Config(application, log_config=None, proxy_headers=False, interface="asgi3", ws=GuardedWebSocket)
    config.header_seconds, config.min_bytes_per_second = 60, 1000
    own, other = socket.socketpair()
    with own, other:
        connection, transport = HttpConnection(config, ServerState(), {}), Transport(own)
        connection.connection_made(transport)
        yield connection, transport, entries
        connection.connection_lost(None)


async def replies(*reads, count=1, pause=0):
    """What is written to what is read, until so many requests are over; and whether the connection is closed then."""
    with connected() as (connection, transport, entries):
        for data in reads:
            connection.data_received(data)
            await turns(pause)
        for _ in range(10 * count):
            if transport.closed or len(entries) == count:
                break
            await turns(1)
        await turns(1)
        return transport.written, transport.closed


def test_uvicorn_is_the_pinned_one():
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert "uvicorn==0.54.*" in dependencies
    assert version("uvicorn").startswith("0.54.")


@in_loop
async def test_all_that_is_used_of_uvicorn_is_there():
    for ours, theirs in ((HttpConnection, HttpToolsProtocol), (PipelineFlow, FlowControl)):
        for name in vars(ours):
            if not name.startswith("_") or name == "_start_asgi_task":
                used, given = (inspect.signature(getattr(kind, name)).parameters for kind in (ours, theirs))
                assert [*used] == [*given], name
    with connected() as (connection, _, _):
        theirs = HttpToolsProtocol(connection.config, ServerState(), {})
        theirs.on_message_begin()
        own = vars(HttpConnection).keys() | vars(Paced).keys() | (vars(connection).keys() - vars(theirs).keys())
        for owner, there in {
            r"self": {*dir(theirs), *own},
            r"super\(\)": dir(HttpToolsProtocol),
            r"self\.cycle": RequestResponseCycle.__init__.__code__.co_names,
            r"self\.flow": dir(FlowControl(None)),
            r"self\.server_state": dir(ServerState()),
        }.items():
            used = {*re.findall(rf"\b{owner}\.(\w+)", inspect.getsource(HttpConnection))}
            assert used <= {*there}, owner
            assert used


@in_loop
async def test_direct_answer_is_one_write():
    with connected() as (connection, transport, entries):
        connection.data_received(post())
        wanted = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 3\r\nx-request-id: r1\r\n\r\nabc"
        assert transport.writes == [wanted]
        assert (entries[0]["request_id"], entries[0]["received_bytes"], entries[0]["sent_bytes"]) == ("r1", 3, 3)
        connection.data_received(post(headers=BY_ASGI))
        await turns(9)
        assert len(transport.writes) > 2
        assert transport.written == wanted * 2
        assert {**entries[0], "ms": 0} == {**entries[1], "ms": 0}


@pytest.mark.parametrize("size", [0, DIRECT_BYTES, DIRECT_BYTES + 1])
@in_loop
async def test_every_entrance_gives_the_same_bytes(size):
    body = b"x" * size
    chunked = (
        b"POST /echo HTTP/1.1\r\nHost: a\r\nX-Request-Id: r1\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n"
    )
    wanted = await replies(post(body=body, headers=BY_ASGI))
    assert wanted[0].endswith(b"\r\n\r\n" + body)
    whole, by_asgi = post(body=body), post(body=body, headers=BY_ASGI)
    zeros = [data.replace(b"Length: ", b"Length: " + b"0" * 5000) for data in (whole, by_asgi)]
    for reads in ([whole], [whole[:100], whole[100:]], [post(b"/wait", body=body)], zeros[:1], zeros[1:]):
        assert await replies(*reads) == wanted
    if size:
        assert await replies(chunked % (size, body)) == wanted


@in_loop
async def test_pipelined_replies_keep_their_order():
    kinds = [(b"/echo", b""), (b"/wait", b""), (b"/echo", BY_ASGI), (b"/wait", b"")]
    requests = [post(*kind, request_id=b"r%d" % index) for index, kind in enumerate(kinds * 5)]
    for reads in ([b"".join(requests)], requests):
        written, closed = await replies(*reads, count=20)
        assert re.findall(rb"x-request-id: r(\d+)", written) == [b"%d" % index for index in range(20)]
        assert not closed


@in_loop
async def test_repeated_heads_change_nothing():
    """Reads that begin within a head are the parser's."""
    same, by_asgi = post(), post(headers=BY_ASGI, request_id=b"r2")
    put = b"PUT /echo HTTP/1.1\r\nHost: a\r\nX-Request-Id: r4\r\nContent-Length: %d\r\n\r\n" % len(same)
    get = b"GET / HTTP/1.1\r\nHost: a\r\nX-Request-Id: r3\r\n\r\n"
    reads = [same, post(body=b"another size"), same, get, same, by_asgi, same]
    reads += [put, same, same, same + same, b"\r\n", same, post(b"/wait"), post(b"/wait"), same]
    cut = [part for data in reads for part in (data[:1], data[1:])]
    whole, parsed = [await replies(*data, count=15, pause=20) for data in (reads, cut)]
    assert whole == parsed
    assert [whole[0].count(b" %d " % status) for status in (200, 404)] == [13, 2]


@in_loop
async def test_large_body_behind_a_known_head_is_read_as_any_large_body():
    with connected() as (connection, _, entries):
        connection.data_received(post())
        assert (connection._known_head is None, connection.cycle) == (False, None)
        connection.data_received(post(body=bytes(DIRECT_BYTES + 1)))
        assert connection.cycle is not None
        await turns(20)
        assert [entry["received_bytes"] for entry in entries] == [3, DIRECT_BYTES + 1]


@in_loop
async def test_no_timer_outlasts_a_reply():
    with connected() as (connection, _, _):
        for data in (post(), b"\r\n", post()):
            connection.data_received(data)
        assert not connection._head_timer.runs
        assert not connection._rest_timer.runs


@in_loop
async def test_turn_of_direct_answers_ends(monkeypatch):
    """By a clock that goes on by 0.6 ms at each look: once when the bytes come, then after each slice."""
    ticks = count()
    monkeypatch.setattr(flow, "perf_counter", lambda: 6e-4 * next(ticks))
    size = 2 * SLICE_BYTES // len(post())
    with connected() as (connection, transport, entries):
        connection.data_received(post() * 10 * size)
        for turn in range(1, 10):
            assert not transport.reading
            assert turn * size <= len(transport.writes) == len(entries) <= turn * (size + 1)
            await turns(1)
        assert (len(entries), transport.written.count(b"HTTP/1.1 200")) == (10 * size, 10 * size)
        assert transport.reading


@pytest.mark.parametrize("entrance", [b"", BY_ASGI])
@in_loop
async def test_client_that_hangs_up_stops_its_work(entrance):
    with connected() as (connection, transport, entries):
        connection.data_received(post(b"/work", entrance))
        await turns(9)
        assert not entries
        connection.connection_lost(None)
        await turns(9)
        assert ([entry["status"] for entry in entries], transport.writes) == ([499], [])


def offer(protocol, connection=b"keep-alive"):
    return b"Connection: %b, Upgrade\r\nUpgrade: %b\r\n" % (connection, protocol)


@pytest.mark.parametrize("body", [LENGTH, CHUNKED])
@pytest.mark.parametrize("entrance", [b"", BY_ASGI])
@pytest.mark.parametrize(
    ("number", "connection"), [(b"1.1", b"keep-alive"), (b"1.1", b"close"), (b"1.0", b"keep-alive")]
)
@in_loop
async def test_offer_of_another_protocol_is_ignored(body, entrance, number, connection):
    head = b"POST /echo HTTP/%b\r\nHost: a\r\nX-Request-Id: r1\r\n%b" % (number, entrance)
    following = post(request_id=b"r2", body=b"the next")
    wanted, closed = await replies(head + body % (b"Connection: %b\r\n" % connection) + following, count=2)
    assert (b"abcdef" in wanted, closed or wanted.endswith(b"the next")) == (True, True)
    for protocol in OFFERS:
        data = head + body % offer(protocol, connection) + following
        assert await replies(data, count=2) == (wanted, closed)
    for place in range(len(data)):
        assert await replies(data[:place], data[place:], count=2) == (wanted, closed)
