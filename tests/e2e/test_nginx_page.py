"""nginx with TLS, HTTP/2 and a rate, as docs/behind-a-proxy.md makes it of deploy/nginx.conf."""

import re
import shlex
import shutil
import subprocess

import pytest

from .proxy import NGINX, nginx
from .running import ROOT, start

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(NGINX is None or shutil.which("openssl") is None, reason="needs nginx and openssl"),
]
PAGE = (ROOT / "docs" / "behind-a-proxy.md").read_text()
NAME = "rnn.example.org"


@pytest.fixture
def secured(tmp_path):
    """The address of nginx, whose certificate is the page's."""
    (command,) = re.findall(r"```sh\n(openssl .*?)```", PAGE, re.DOTALL)
    subprocess.run(shlex.split(command.replace("\\\n", "")), cwd=tmp_path, check=True, capture_output=True)
    server, http = re.findall(r"```nginx\n(.*?)```", PAGE, re.DOTALL)
    server = server.replace("/etc/nginx/tls", str(tmp_path))
    service = start(ROOT / "models", tmp_path, allowed_hosts=NAME, trusted_proxies="127.0.0.1")
    try:
        with nginx(tmp_path, [service, service], server=server, http=http) as url:
            yield url
    finally:
        service.stop()


def test_tls_http2_and_a_rate(secured, tmp_path):
    port = secured.rpartition(":")[2]
    trust = ["--cacert", tmp_path / "cert.pem", "--resolve", f"{NAME}:{port}:127.0.0.1"]

    def curl(*options, path):
        command = ["curl", "-s", *trust, *options, f"https://{NAME}:{port}{path}"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert curl("-o", "/dev/null", "-w", "%{http_version} %{http_code}", path="/health/ready") == "2 200"
    body = '{"model": "sunspots", "inputs": [[4.2]]}'
    assert '"predictions":[[15.7' in curl("-H", "Content-Type: application/json", "-d", body, path="/rnn/forward")
    codes = curl("-o", "/dev/null", "-w", "%{http_code}\n", "-Z", path="/health/live?x=[1-1000]").split()
    assert {"200", "429"} == set(codes)
