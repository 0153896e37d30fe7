"""Who may call: pages of other origins, names that somebody else made point here, and heads without a sound Host."""

import shutil
import socket
import subprocess
from types import SimpleNamespace

import pytest

from .conftest import SIGNED_KEY
from .formats import NDJSON
from .problems import assert_problem
from .raw import Wire
from .running import ROOT, until

STEP = b'{"model":"tanh","inputs":[1,2,3,4]}'
HANDSHAKE = f"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {'A' * 22}=="
ENTRANCES = {
    "direct": ("POST /cell/step", "Accept: */*", STEP),
    "ASGI": ("POST /cell/step", "Content-Encoding: identity", STEP),
    "NDJSON": ("POST /cell/step?model=tanh", f"Content-Type: {NDJSON}", b"[1,2,3,4]\n"),
    "WebSocket": ("GET /cell/stream?model=tanh", HANDSHAKE, b""),
    "route": ("GET /models", "Accept: */*", b""),
    "page": ("GET /", "Accept: */*", b""),
}
OK = {200, 101}
OWN = {"localhost:8000": "http", "LOCALHOST": "https", "localhost:443": "https", "[::1]:9000": "https"}
FOREIGN = ["https://evil.example", "null", "http://[", "http://localhost:1", "localhost:8000"]
REBOUND = ["evil.example", "127.0.0.1.evil.example:80", "localhost.evil.example", "2130706433"]
MALFORMED = [[], ["localhost"] * 2, [""], ["a b"], ["a/b"], ["a:b"], ["a@b"], ["é"], ["[:::]"], ["[::1"], ["[1.2.3.4]"]]


def request(entrance, *headers, version="1.1"):
    line, own, body = ENTRANCES[entrance]
    sized = f"Content-Length: {len(body)}" if body else "X-No-Body: 1"
    return "\r\n".join([f"{line} HTTP/{version}", *headers, own, sized, "", ""]).encode("latin-1") + body


def status(service, entrance, *headers, version="1.1"):
    with Wire(service) as wire:
        wire.send(request(entrance, *headers, version=version))
        return wire.status_and_headers()[0]


@pytest.mark.parametrize("entrance", ENTRANCES)
def test_host_and_origin_are_judged(service, guarded, entrance):
    for host, scheme in OWN.items():
        headers = f"Host: {host}", f"Origin: {scheme}://{host.removesuffix(':443')}"
        assert status(service, entrance, *headers) in OK, host
    for origin in FOREIGN:
        assert status(service, entrance, "Host: localhost:8000", f"Origin: {origin}") == 403, origin
    for host in REBOUND:
        assert status(service, entrance, f"Host: {host}", f"Origin: http://{host}") == 403, host
        assert status(service, entrance, f"Host: {host}") == 403, host
    for hosts in MALFORMED:
        assert status(service, entrance, *(f"Host: {host}" for host in hosts)) == 400, hosts
    keyed = "Host: localhost", "Origin: https://evil.example", f"Authorization: Bearer {SIGNED_KEY}"
    assert status(guarded, entrance, *keyed) == (403 if entrance == "WebSocket" else 200)
    if entrance != "WebSocket":
        assert status(service, entrance, version="1.0") == 200
        assert status(service, entrance) == 400
        assert status(service, entrance, "Host: localhost", "Host: localhost", version="1.0") == 400


def test_refusals_say_what_to_do(service):
    reply = service.get("/models", headers={"host": "evil.example"})
    assert_problem(reply, 403, "forbidden", "evil.example", "RNN_ALLOWED_HOSTS")
    assert_problem(service.get("/models", headers={"host": "a/b"}), 400, "malformed-host", "a/b")


def test_repeated_head_is_judged_anew(service):
    good, evil = request("direct", "Host: localhost"), request("direct", "Host: evilhosts")
    foreign = request("direct", "Host: localhost", "Origin: http://evil")
    with Wire(service) as wire:
        for data in (good, good, evil, evil, good, foreign, foreign):
            wire.send(data)
            assert wire.reply().status == (200 if data == good else 403)


def test_listed_names_and_origins_may_call(launch):
    everywhere = launch(host="0.0.0.0", allowed_origins="https://lab.example")
    for origin, wanted in (("https://LAB.example", 200), ("https://rnn.example", 200), ("https://evil.example", 403)):
        assert status(everywhere, "direct", "Host: rnn.example", f"Origin: {origin}") == wanted
    named = launch(host="0.0.0.0", allowed_hosts="rnn.example, Other.example")
    for host, wanted in (("RNN.example:80", 200), ("other.example", 200), ("10.1.2.3:9", 200), ("evil.example", 403)):
        assert status(named, "direct", f"Host: {host}") == wanted


@pytest.mark.skipif(not shutil.which("nginx"), reason="there is no nginx")
def test_page_works_behind_nginx(service, tmp_path):
    """A browser names the proxy's port in Host and Origin; HTTP/1.0 may come without a Host there, too."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        proxy = SimpleNamespace(port=free.getsockname()[1])
    conf = (ROOT / "deploy/nginx.conf").read_text().replace("/tmp", str(tmp_path))
    conf = conf.replace("listen 8000", f"listen 127.0.0.1:{proxy.port}").replace(
        "rnn-service-1:8000", "127.0.0.1:9 down"
    )
    (tmp_path / "nginx.conf").write_text(conf.replace("rnn-service-2:8000", f"127.0.0.1:{service.port}"))
    nginx = subprocess.Popen(["nginx", "-c", tmp_path / "nginx.conf", "-g", "daemon off;"])
    try:
        until((tmp_path / "nginx.pid").exists, "nginx listens")
        for entrance in ENTRANCES:
            own, foreign = (f"Origin: http://localhost:{port}" for port in (proxy.port, service.port))
            assert status(proxy, entrance, f"Host: localhost:{proxy.port}", own) in OK
            assert status(proxy, entrance, f"Host: localhost:{proxy.port}", foreign) == 403
            assert entrance == "WebSocket" or status(proxy, entrance, version="1.0") == 200
    finally:
        nginx.terminate()
        nginx.wait()
