"""Bad clients, part one: those that send too slowly, or never stop sending what means nothing."""

import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from .problems import assert_document, assert_problem
from .raw import Wire, chunk, head, post, stream_head
from .watching import all_gone, dropped, flooded, memory_returns, others_are_served

CHUNKED = {"Transfer-Encoding": "chunked"}


HEADERS = b"GET /health/live HTTP/1.1\r\nHost: service\r\n"
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
OUTLASTED = {"GET": "/health/live", "POST": "/nothing", "PUT": "/rnn/forward"}


def drip(service, begin, piece):
    with Wire(service) as wire:
        wire.send(begin)
        return dropped(wire, piece)


@pytest.fixture(scope="module")
def outcomes(impatient):
    """All the slow clients at once, as they come in life, while another is served; what each was told in the end."""
    cases = {("new", name): case for name, case in UNENDED.items()}
    cases |= {("kept alive", name): (GET + begin, piece) for name, (begin, piece) in UNENDED.items()}
    cases |= {
        (path, name): (head("POST", path, headers), piece)
        for path in HOT
        for name, (headers, piece) in SLOW_BODIES.items()
    }
    cases |= {
        (method, "outlasted"): (head(method, path, {"Content-Length": 10**12}), b"x")
        for method, path in OUTLASTED.items()
    }
    promise = {"Content-Length": 100, "Expect": "100-continue"}
    cases |= {
        "promised": (head("POST", "/rnn/forward", promise), b""),
        "a line without end": (stream_head("/cell/step?model=tanh"), chunk(b"1")),
        "a silent stream": (stream_head("/cell/step?model=tanh") + chunk(b"[1,2,3,4]\n"), b""),
    }
    with others_are_served(impatient), ThreadPoolExecutor(len(cases)) as pool:
        return {name: pool.submit(drip, impatient, *case) for name, case in cases.items()}


@pytest.mark.parametrize("name", UNENDED)
def test_headers_that_never_end(outcomes, name):
    assert outcomes["new", name].result() == b""


@pytest.mark.parametrize("name", UNENDED)
def test_headers_that_never_end_on_a_kept_alive_connection(outcomes, name):
    said = outcomes["kept alive", name].result()
    assert said.startswith(b"HTTP/1.1 200 ")
    assert said.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize("path", HOT)
@pytest.mark.parametrize("name", SLOW_BODIES)
def test_a_body_slower_than_the_least_rate(outcomes, path, name):
    said = outcomes[path, name].result()
    assert said.startswith(b"HTTP/1.1 408 ")
    assert_document(json.loads(said.split(b"\r\n\r\n", 1)[1]), 408, "body-timeout", "1 s and 1000 bytes/s")


def test_a_body_that_was_promised_after_100_continue(outcomes):
    assert outcomes["promised"].result().startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 408 ")


@pytest.mark.parametrize(("method", "status"), [("GET", b"200"), ("POST", b"404"), ("PUT", b"405")])
def test_a_body_that_outlasts_its_reply(outcomes, method, status):
    assert outcomes[method, "outlasted"].result().startswith(b"HTTP/1.1 " + status)


def test_a_stream_whose_first_line_never_ends(outcomes):
    said = outcomes["a line without end"].result()
    assert said.startswith(b"HTTP/1.1 408 ")


def test_a_stream_that_falls_silent(outcomes):
    said = outcomes["a silent stream"].result()
    assert said.startswith(b"HTTP/1.1 200 ")
    answer, last = (json.loads(line) for line in said.splitlines() if line.startswith(b"{"))
    assert answer["step"] == 1
    assert_document(last["error"], 408, "body-timeout", "2 s")
    assert said.endswith(b"0\r\n\r\n")


def test_an_idle_connection_is_closed_and_a_used_one_is_not(impatient):
    with Wire(impatient) as wire:
        for _ in range(6):
            wire.send(GET)
            assert wire.reply().status == 200
            time.sleep(0.5)  # less than keep_alive_seconds, more in sum
        assert dropped(wire) == b""


def test_a_body_at_a_fair_rate_is_waited_for(impatient):
    """Longer than the grace, and above the least rate."""
    body = b'{"model":"tanh","inputs":[[1,2,3,4]]}' + b" " * 40_000
    with Wire(impatient) as wire:
        wire.send(head("POST", "/rnn/forward", {"Content-Length": len(body)}))
        for start in range(0, len(body), 4000):
            wire.send(body[start : start + 4000])
            time.sleep(0.15)
        assert wire.reply().status == 200


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
def test_headers_without_end_at_full_speed(impatient, begin, piece):
    with memory_returns(impatient), others_are_served(impatient), Wire(impatient) as wire:
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
def test_framing_without_end(impatient, method, path, begin, piece):
    with memory_returns(impatient), others_are_served(impatient), Wire(impatient) as wire:
        wire.send(head(method, path, CHUNKED) + begin)
        flooded(wire, piece)


def test_a_flood_that_outlasts_its_reply(impatient):
    with memory_returns(impatient), others_are_served(impatient), Wire(impatient) as wire:
        wire.send(head("GET", "/health/live", {"Content-Length": 10**12}))
        assert flooded(wire, b"x" * 60_000).startswith(b"HTTP/1.1 200 ")


def test_a_stream_that_goes_on_after_its_error(impatient):
    with memory_returns(impatient), others_are_served(impatient), Wire(impatient) as wire:
        wire.send(stream_head("/cell/step?model=tanh") + chunk(b"[1,2,3,4]\nx\n"))
        said = flooded(wire, chunk(b"[1,2,3,4]\n" * 1000))
    assert said.startswith(b"HTTP/1.1 200 ")
    assert b"/problems/malformed-body" in said


def test_nobody_is_left(impatient):
    """The last test of this file: whatever came before, no connection is held any more."""
    with Wire(impatient) as wire:
        wire.send(post("/rnn/forward", b"{", {"Connection": "close"}))
        assert_problem(wire.reply(), 400, "malformed-body")
    all_gone(impatient)
