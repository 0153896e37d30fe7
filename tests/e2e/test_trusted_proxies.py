"""Clients behind a proxy that is trusted: their addresses in the log, and shares of their own."""

import json
from contextlib import ExitStack, contextmanager

import httpx
import pytest

from .formats import NDJSON
from .problems import assert_problem
from .proxy import NGINX, nginx
from .raw import Wire, post
from .running import ANSWER_SECONDS, start, until
from .sockets import opened
from .test_limits import queued, wide

STEP = {"model": "tanh", "inputs": [1, 2, 3, 4]}
PROXY, OTHER = "127.0.0.1", "127.0.0.2"  # addresses of one machine


@pytest.fixture(scope="module")
def behind(repository, tmp_path_factory):
    """A service that trusts a proxy on 127.0.0.1, with eight places for forwards."""
    folder = tmp_path_factory.mktemp("behind")
    running = start(
        repository, folder, trusted_proxies=f"10.0.0.0/8, {PROXY}", compute_threads=1, max_queued_requests=8
    )
    yield running
    running.stop()


@contextmanager
def client_at(address, url):
    transport = httpx.HTTPTransport(local_address=address)
    with httpx.Client(base_url=url, timeout=ANSWER_SECONDS, transport=transport) as client:
        yield client


def logged_client(service, request_id):
    (entry,) = until(lambda: service.logged(f'"{request_id}"'), "the log line")
    return entry["client"]


def ways(client, **headers):
    """A request by each way into the service; gives their ids."""
    small, large = json.dumps(STEP).encode(), json.dumps({"model": "tanh", "inputs": [[1, 2, 3, 4]] * 10_000}).encode()
    calls = {
        "direct": ("POST", "/cell/step", small, {}),
        "asgi": ("POST", "/rnn/forward", large, {}),
        "route": ("GET", "/models", b"", {}),
        "lines": ("POST", "/cell/step?model=tanh", b"[1,2,3,4]\n", {"content-type": NDJSON}),
        "refused": ("POST", "/nothing", small, {}),
    }
    for name, (method, path, body, own) in calls.items():
        given = headers | own | {"x-request-id": f"{name}-{id(client)}"}
        reply = client.request(method, path, content=body, headers=given)
        assert reply.status_code == (404 if name == "refused" else 200), reply.text
        yield given["x-request-id"]


@pytest.mark.parametrize(("address", "wanted"), [(PROXY, "198.51.100.1"), (OTHER, OTHER)])
def test_trusted_peer_names_the_client(behind, address, wanted):
    """By every way; of anybody else nothing is believed."""
    with client_at(address, behind.url) as client:
        for request_id in ways(client, **{"x-forwarded-for": "203.0.113.7, 198.51.100.1, 10.0.0.3"}):
            assert logged_client(behind, request_id) == wanted
    headers = {"x-forwarded-for": "198.51.100.1", "x-request-id": f"socket-{address}"}
    with opened(behind, "", additional_headers=headers, source_address=(address, 0)) as socket:
        socket.send('{"model": "tanh"}\n[1,2,3,4]')
        socket.recv()
    assert logged_client(behind, f"socket-{address}") == wanted


def test_nobody_is_trusted_unless_told(service):
    service.post("/cell/step", STEP, headers={"x-forwarded-for": "198.51.100.1", "x-request-id": "untold"})
    assert logged_client(service, "untold") == PROXY


@pytest.mark.parametrize(
    ("lines", "wanted"),
    [
        (["203.0.113.7", "198.51.100.1", "10.0.0.1"], "198.51.100.1"),
        (["," * 30_000, "198.51.100.1:1, 10.0.0.1"], "198.51.100.1"),
        (["198.51.100.1, \xff\t{}"], PROXY),
        ([""], PROXY),
    ],
)
def test_hostile_lists_are_answered(behind, lines, wanted):
    request_id = f"hostile-{len(lines)}-{len(lines[0])}"
    request = post("/cell/step", json.dumps(STEP).encode(), {"X-Request-Id": request_id})
    fields = "".join(f"\r\nX-Forwarded-For: {line}" for line in lines).encode("latin-1")
    with Wire(behind) as wire:
        wire.send(request.replace(b"\r\n", fields + b"\r\n", 1))
        assert wire.reply().status == 200
    assert logged_client(behind, request_id) == wanted


def hold_all_places(stack, wires, **headers):
    """Let one client take its six places of eight."""
    for _ in range(6):
        stack.enter_context(wires()).send(wide(20_000, **headers))


def test_clients_of_a_proxy_have_shares_of_their_own(behind):
    """Without keys, and over connections that the proxy shares."""
    one, two = ({"X-Forwarded-For": f"198.51.100.{number}"} for number in (1, 2))
    body = json.dumps({"model": "tanh", "inputs": [[1, 2, 3, 4]]})
    with ExitStack() as stack:
        hold_all_places(stack, lambda: Wire(behind), **one)
        until(lambda: queued(behind) == 6, "all places of one client are taken")
        assert_problem(behind.post("/rnn/forward", content=body, headers=one), 429, "client-full")
        assert behind.post("/rnn/forward", content=body, headers=two).status_code == 200
    until(lambda: queued(behind) == 0, "the queue is empty")


@pytest.mark.integration
@pytest.mark.skipif(NGINX is None, reason="needs nginx")
def test_nginx_tells_its_clients_apart(behind, tmp_path):
    """What clients write into the header themselves is replaced."""
    body = json.dumps({"model": "tanh", "inputs": [[1, 2, 3, 4]]})
    with nginx(tmp_path, [behind, behind]) as url, ExitStack() as stack:
        clients = {address: stack.enter_context(client_at(address, url)) for address in ("127.0.0.3", "127.0.0.4")}
        for address, client in clients.items():
            for request_id in ways(client, **{"x-forwarded-for": "203.0.113.7"}):
                assert logged_client(behind, request_id) == address
        at_nginx = type(behind)(behind.process, behind.log_file, httpx.URL(url).port)
        one, two = clients
        sources = {"source_address": (one, 0), "additional_headers": {"x-request-id": "socket-nginx"}}
        with opened(at_nginx, "", **sources) as socket:
            socket.send('{"model": "tanh"}\n[1,2,3,4]')
            socket.recv()
        assert logged_client(behind, "socket-nginx") == one
        with ExitStack() as held:
            hold_all_places(held, lambda: Wire(at_nginx))  # from 127.0.0.1
            until(lambda: queued(behind) == 6, "all places of one client are taken")
            assert_problem(at_nginx.post("/rnn/forward", content=body), 429, "client-full")
            assert clients[two].post("/rnn/forward", content=body).status_code == 200
        until(lambda: queued(behind) == 0, "the queue is empty")
