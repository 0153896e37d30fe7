"""Clients that send too slowly, or never stop sending what means nothing."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from .problems import assert_document
from .raw import Wire, chunk, head, post, stream_head
from .running import until
from .watching import connections_close, dropped, flooded, memory_returns, others_are_served

CHUNKED = {"Transfer-Encoding": "chunked"}
HEADERS = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n"
GET = head("GET", "/health/live")
UNENDED = {
    "silence": (b"", b""),
    "empty lines": (b"", b"\r\n"),
    "half a line": (b"GET /hea", b""),
    "half a head": (HEADERS, b""),
    "dripping headers": (HEADERS, b"X: y\r\n"),
    "a dripping header": (HEADERS + b"X: ", b"y"),
}
SLOW_BODIES = {
    "dripping": ({"Content-Length": 100_000}, b" "),
    "dripping chunks": (CHUNKED, chunk(b" ")),
    "nothing": ({"Content-Length": 100_000}, b""),
}
HOT = ("/rnn/forward", "/cell/step")
OUTLASTED = {"GET": ("/health/live", b"200"), "POST": ("/nothing", b"404"), "PUT": ("/rnn/forward", b"405")}


def drip(service, begin, piece):
    with Wire(service) as wire:
        wire.send(begin)
        return dropped(wire, piece)


@pytest.fixture(scope="module")
def outcomes(short_timeouts):
    """What each of all the slow clients was told, at once and while another client is served."""
    cases = {("new", name): case for name, case in UNENDED.items()}
    cases |= {("kept alive", name): (GET + begin, piece) for name, (begin, piece) in UNENDED.items()}
    cases |= {
        (path, name): (head("POST", path, headers), piece)
        for path in HOT
        for name, (headers, piece) in SLOW_BODIES.items()
    }
    cases |= {
        (method, "outlasted"): (head(method, path, {"Content-Length": 10**12}), b"x")
        for method, (path, _) in OUTLASTED.items()
    }
    promise = {"Content-Length": 100, "Expect": "100-continue"}
    cases |= {
        "promised": (head("POST", "/rnn/forward", promise), b""),
        "a line without end": (stream_head("/cell/step?model=tanh"), chunk(b"1")),
        "a silent stream": (stream_head("/cell/step?model=tanh") + chunk(b"[1,2,3,4]\n"), b""),
    }
    with others_are_served(short_timeouts), ThreadPoolExecutor(len(cases)) as pool:
        return {name: pool.submit(drip, short_timeouts, *case) for name, case in cases.items()}


@pytest.mark.parametrize("name", UNENDED)
def test_endless_headers(outcomes, name):
    assert outcomes["new", name].result() == b""
    said = outcomes["kept alive", name].result()
    assert said.startswith(b"HTTP/1.1 200 ")
    assert said.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize("path", HOT)
@pytest.mark.parametrize("name", SLOW_BODIES)
def test_body_slower_than_the_lowest_rate(outcomes, path, name):
    said = outcomes[path, name].result()
    assert said.startswith(b"HTTP/1.1 408 ")
    assert_document(json.loads(said.split(b"\r\n\r\n", 1)[1]), 408, "body-timeout", "1 s and 1000 bytes/s")


def test_body_missing_after_100_continue(outcomes):
    assert outcomes["promised"].result().startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 408 ")


@pytest.mark.parametrize("method", OUTLASTED)
def test_body_that_outlasts_its_reply(outcomes, method):
    assert outcomes[method, "outlasted"].result().startswith(b"HTTP/1.1 " + OUTLASTED[method][1])


def test_stream_whose_first_line_never_ends(outcomes):
    assert outcomes["a line without end"].result().startswith(b"HTTP/1.1 408 ")


def test_stream_that_falls_silent(outcomes):
    said = outcomes["a silent stream"].result()
    assert said.startswith(b"HTTP/1.1 200 ")
    answer, last = (json.loads(line) for line in said.splitlines() if line.startswith(b"{"))
    assert answer["step"] == 1
    assert_document(last["error"], 408, "body-timeout", "2 s")
    assert said.endswith(b"0\r\n\r\n")


@pytest.mark.parametrize(
    "call", [GET, post("/cell/step", b'{"model":"tanh","inputs":[1,2,3,4]}')], ids=["health", "step"]
)
def test_only_an_idle_connection_is_closed(short_timeouts, call):
    with Wire(short_timeouts) as used, Wire(short_timeouts) as idle:
        idle.send(call)
        assert idle.reply().status == 200

        def idle_is_closed():
            used.send(call)
            assert used.reply().status == 200
            return idle.has_answer()

        until(idle_is_closed, "the idle connection is closed")
        assert idle.rest() == b""
        used.send(call)
        assert used.reply().status == 200
        assert dropped(used) == b""


def test_body_at_a_fair_rate_is_read(short_timeouts):
    """It takes longer than a body that does not come is waited for."""
    with Wire(short_timeouts) as fair, Wire(short_timeouts) as slow:
        slow.send(head("POST", "/rnn/forward", CHUNKED))
        fair.send(head("POST", "/rnn/forward", CHUNKED) + chunk(b'{"model":"tanh","inputs":[[1,2,3,4]]}'))

        def slow_is_refused():
            fair.send(chunk(b" " * 4000))
            return slow.has_answer()

        until(slow_is_refused, "the other body is too slow", every=0.1)
        assert slow.reply().status == 408
        fair.send(chunk(b""))
        assert fair.reply().status == 200


@pytest.mark.parametrize(
    ("begin", "piece"),
    [
        (HEADERS, b"X: y\r\n" * 1000),
        (HEADERS + b"X: ", b"y" * 10_000),
        (b"GET /", b"a" * 10_000),
        (b"", b"\r\n" * 5000),
    ],
    ids=["many", "one", "path", "empty-lines"],
)
def test_flood_of_headers(short_timeouts, begin, piece):
    with memory_returns(short_timeouts), others_are_served(short_timeouts), Wire(short_timeouts) as wire:
        wire.send(begin)
        assert flooded(wire, piece).split(b" ")[1:2] in ([], [b"400"])


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/rnn/forward"), ("POST", "/cell/step"), ("GET", "/health/live")]
)
@pytest.mark.parametrize(
    ("begin", "piece"),
    [(b"5;", b"x" * 10_000), (b"0\r\n", b"X: y\r\n" * 1000), (b"0\r\nX: ", b"y" * 10_000)],
    ids=["chunk-extension", "trailers", "trailer"],
)
def test_flood_of_framing(short_timeouts, method, path, begin, piece):
    with memory_returns(short_timeouts), others_are_served(short_timeouts), Wire(short_timeouts) as wire:
        wire.send(head(method, path, CHUNKED) + begin)
        flooded(wire, piece)


def test_flood_that_outlasts_its_reply(short_timeouts):
    with memory_returns(short_timeouts), others_are_served(short_timeouts), Wire(short_timeouts) as wire:
        wire.send(head("GET", "/health/live", {"Content-Length": 10**12}))
        assert flooded(wire, b"x" * 60_000).startswith(b"HTTP/1.1 200 ")


def test_flood_after_the_error_of_a_stream(short_timeouts):
    with memory_returns(short_timeouts), others_are_served(short_timeouts), Wire(short_timeouts) as wire:
        wire.send(stream_head("/cell/step?model=tanh") + chunk(b"[1,2,3,4]\nx\n"))
        said = flooded(wire, chunk(b"[1,2,3,4]\n" * 1000))
    assert said.startswith(b"HTTP/1.1 200 ")
    assert b"/problems/malformed-body" in said


def test_no_connection_is_left(short_timeouts):
    """The last test of this file."""
    connections_close(short_timeouts)
