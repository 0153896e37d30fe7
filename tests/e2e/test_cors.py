"""CORS: pages of allowed origins may read every reply, whichever entrance it came by and whatever went wrong."""

import pytest

from .conftest import SIGNED_KEY
from .formats import JSON, NDJSON
from .problems import assert_problem
from .raw import Wire, head, post

LAB = "https://lab.example"
KEYED = {"authorization": f"Bearer {SIGNED_KEY}"}
STEP = b'{"model":"tanh","inputs":[1,2,3,4]}'
LONG = b'{"model":"tanh","inputs":[%b]}' % b",".join([b"[1,2,3,4]"] * 300)  # its reply may be compressed
LINES = {"content-type": NDJSON}
GENERATE = b'{"model":"gru","inputs":[[1,2,3,4]],"steps":2,"feedback":[0,1],"future":[[0,0,3,4]]}'

# Method, path, body, headers beside the key's; status.
CALLS = {
    "direct": ("POST", "/cell/step", STEP, {}, 200),
    "direct, waits": ("POST", "/cell/sessions", b'{"model":"tanh"}', {}, 201),
    "ASGI": ("POST", "/rnn/forward", LONG, {"content-encoding": "identity", "accept-encoding": "gzip"}, 200),
    "stream": ("POST", "/cell/step?model=tanh", b"[1,2,3,4]\n", LINES, 200),
    "generated lines": ("POST", "/rnn/generate", GENERATE, {"accept": NDJSON}, 200),
    "route": ("GET", "/models", b"", {}, 200),
    "HEAD": ("HEAD", "/models", b"", {}, 200),
    "page of a problem": ("GET", "/problems/forbidden", b"", {}, 200),
    "file": ("GET", "/static-offline-docs/swagger-ui.css", b"", {}, 200),
    "metrics": ("GET", "/metrics", b"", {}, 200),
    "no key": ("POST", "/cell/step", STEP, {"authorization": ""}, 401),
    "no JSON": ("POST", "/cell/step", b"{", {}, 400),
    "bad first line": ("POST", "/cell/step?model=tanh", b"{\n", LINES, 400),
    "bad Host": ("POST", "/cell/step", STEP, {"host": "a/b"}, 400),
    "no admin": ("GET", "/cell/sessions", b"", {}, 403),
    "no route": ("GET", "/nothing", b"", {}, 404),
    "no method": ("DELETE", "/rnn/forward", b"", {}, 405),
    "no format": ("POST", "/cell/step", STEP, {"accept": "text/html"}, 406),
    "too large": ("POST", "/rnn/forward", b"[", {"content-length": str(2**40)}, 413),
    "no media type": ("POST", "/rnn/forward", b"[", {"content-type": "text/html"}, 415),
    "wrong shape": ("POST", "/rnn/forward", b'{"model":"tanh","inputs":[[1]]}', {}, 422),
    "no upgrade": ("GET", "/cell/stream", b"", {}, 426),
    "broken": ("POST", "/cell/step", b'{"model":"broken","inputs":[1]}', {}, 503),
    "deadline": ("POST", "/cell/step", STEP, {"x-request-timeout-ms": "0"}, 504),
}


def lines_of(service, method, path, body, headers):
    """The status of a reply, and the lines of its head by name."""
    with Wire(service) as wire:
        own = {"content-length": len(body)} if body and "content-length" not in headers else {}
        head_bytes = head(method, path, KEYED | own | headers)
        wire.send((head_bytes.replace(b"Host: localhost\r\n", b"") if "host" in headers else head_bytes) + body)
        status, found = int(wire.line().split()[1]), {}
        while line := wire.line():
            name, _, value = line.decode().partition(": ")
            found.setdefault(name.lower(), []).append(value)
        return status, found


@pytest.mark.parametrize("call", CALLS)
def test_allowed_pages_may_read_every_reply(guarded, call):
    *request, sent, status = CALLS[call]
    answered, headers = lines_of(guarded, *request, sent | {"origin": "https://LAB.example"})
    assert answered == status
    assert headers["access-control-allow-origin"] == ["https://LAB.example"]  # to the letter, as browsers compare it
    assert "origin" in headers["vary"]
    assert ("content-encoding" in headers) == ("accept-encoding" in headers["vary"]) == ("accept-encoding" in sent)
    exposed = headers["access-control-expose-headers"][0].split(", ")
    assert {"X-Request-Id", "Retry-After", "Location", "Allow", "Inference-Header-Content-Length"} <= {*exposed}
    assert len(headers["x-request-id"]) == 1
    for origin in ({}, {"origin": "https://evil.example"}):
        answered, headers = lines_of(guarded, *request, sent | origin)
        assert answered == status
        assert not [name for name in headers if name.startswith("access-control")]
        assert "origin" in headers["vary"]


@pytest.mark.parametrize("call", ["direct", "stream", "route", "wrong shape"])
def test_without_the_setting_there_is_no_cors(service, call):
    *request, sent, status = CALLS[call]
    for origin in ({}, {"origin": "http://localhost"}, {"origin": LAB}):
        answered, headers = lines_of(service, *request, {"authorization": ""} | sent | origin)
        assert answered == (403 if origin.get("origin") == LAB else status)
        assert not {"vary", "access-control-allow-origin", "access-control-expose-headers"} & headers.keys()


def test_any_page_may_read_what_slow_and_surplus_clients_get(launch):
    anyone = launch(allowed_origins="*", max_sessions=1, session_queue=1, body_timeout_seconds=0.5)
    page = {"origin": "null"}
    opened, full = (anyone.post("/cell/sessions", {"model": "tanh"}, headers=page) for _ in range(2))
    assert_problem(full, 503, "sessions-full")
    gone = anyone.delete(f"/cell/sessions/{opened.json()['session']}", headers=page)
    for reply, status in ((opened, 201), (full, 503), (gone, 204)):
        assert (reply.status_code, reply.headers["access-control-allow-origin"]) == (status, "*")
        assert reply.headers["vary"] == "origin"
    with Wire(anyone) as wire:
        wire.send(head("POST", "/cell/step", {"content-length": 9} | page))
        late = wire.reply()
        assert (late.status, late.headers["access-control-allow-origin"]) == (408, "*")


def test_repeated_head_gets_its_own_headers(guarded):
    foreign, allowed = (post("/cell/step", STEP, KEYED | {"Origin": o}) for o in ("https://evil.example", LAB))
    with Wire(guarded) as wire:
        for data in (foreign, allowed, allowed, foreign, foreign, allowed):
            wire.send(data)
            reply = wire.reply()
            assert reply.status == 200
            assert reply.headers.get("access-control-allow-origin") == (LAB if data == allowed else None)


def asks(origin, **others):
    wanted = "authorization,content-encoding,content-type,traceparent,x-request-id,x-request-timeout-ms,x-session-id"
    asked = {"access-control-request-method": "POST", "access-control-request-headers": wanted}
    return {"origin": origin} | asked | {name.replace("_", "-"): value for name, value in others.items()}


@pytest.mark.parametrize("path", ["/rnn/forward", "/cell/step", "/cell/sessions/x", "/models", "/docs", "/v2/anything"])
def test_preflight_needs_no_key(guarded, path):
    with guarded.client() as client:
        reply = client.options(path, headers=asks(LAB, access_control_request_private_network="true"))
        assert (reply.status_code, reply.content) == (200, b"")
        assert reply.headers["access-control-allow-origin"] == LAB
        assert reply.headers["access-control-allow-headers"] == asks(LAB)["access-control-request-headers"]
        assert {"GET", "HEAD", "POST", "DELETE"} == {*reply.headers["access-control-allow-methods"].split(", ")}
        assert int(reply.headers["access-control-max-age"]) > 600
        assert reply.headers["access-control-allow-private-network"] == "true"
        assert "access-control-allow-credentials" not in reply.headers
        assert client.options(path, headers=asks(LAB, host="a/b")).status_code == 400
        assert "access-control-allow-private-network" not in client.options(path, headers=asks(LAB)).headers


def test_other_preflights_are_calls_like_others(guarded, service):
    """Without CORS, OPTIONS is a method that no path takes."""
    plain = {"origin": LAB}
    for running, headers, status in (
        (guarded, asks("https://evil.example"), 401),
        (guarded, asks("https://evil.example") | KEYED, 405),
        (guarded, plain, 401),
        (guarded, plain | KEYED, 405),
        (service, asks(LAB), 403),
        (service, asks("http://localhost", host="localhost"), 405),
        (service, {}, 405),
    ):
        with running.client() as client:
            reply = client.options("/models", headers=headers)
        assert reply.status_code == status
        assert "access-control-allow-methods" not in reply.headers
    assert reply.headers["content-type"] == "application/problem+json" != JSON
