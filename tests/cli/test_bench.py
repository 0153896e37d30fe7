"""The load generator: its arithmetic, and what it sends and says, beside real services and servers that misbehave."""

import contextlib
import json
import math
import os
import pty
import re
import shutil
import signal
import socket
import socketserver
import ssl
import subprocess
import sys
import threading
import time
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from service.cli import build_app
from service.loadgen.arrivals import arrivals
from service.loadgen.histogram import Histogram
from service.loadgen.summary import SHARES
from tests.e2e.models import write_repository
from tests.e2e.running import ROOT, start, until

KEY = "a-client's-key"
PROCESSES = st.sampled_from(["poisson", "constant"])


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    repository = write_repository(tmp_path_factory.mktemp("models"))
    running = start(repository, tmp_path_factory.mktemp("service"), api_keys=KEY, preload="gru,lstm,tanh")
    yield running
    running.stop()


def bench(url, *options, key=KEY):
    return CliRunner().invoke(build_app(), ["bench", url, *map(str, options)], env={"RNN_BENCH_KEY": key})


def measured(tmp_path, url, *options, code=0):
    """The summary of a run, which must add up; and what was printed."""
    result = bench(url, *options, "--json", tmp_path / "summary.json")
    assert result.exit_code == code, result.output
    summary = json.loads((tmp_path / "summary.json").read_text())
    ended = [summary[name] for name in ("succeeded", "refused", "failed", "cut_off")]
    assert sum(ended) == summary["due"], summary
    assert sum(summary["errors"].values()) == summary["refused"] + summary["failed"]
    latencies = [summary["latency_ms"][name] for name in (*SHARES, "max")]
    assert latencies == sorted(latencies) if summary["succeeded"] else latencies == [None] * len(latencies)
    return summary, result.stdout


def posts(service):
    """How many requests to the models' calls the service has counted."""
    text = service.get("/metrics").text
    counts = re.findall(r'^rnn_requests_total\{path="/(?:rnn|cell|models).*\} (\S+)$', text, re.MULTILINE)
    return sum(map(float, counts))


@given(st.lists(st.floats(1e-6, 3600), min_size=1, max_size=300), st.lists(st.integers(0, 1000), min_size=1))
def test_a_quantile_is_the_nearest_rank_within_its_bucket(durations, shares):
    histogram = Histogram()
    for duration in durations:
        histogram.record(duration)
    shares, ranked = sorted(shares), sorted(durations)
    exact = [ranked[max(1, math.ceil(share * len(ranked) / 1000)) - 1] for share in shares]
    np.testing.assert_allclose(histogram.quantiles(shares), exact, rtol=0.0026)
    assert histogram.quantiles([1000])[0] <= histogram.largest == ranked[-1]


@given(st.sampled_from([0.0, 1e-9, 1e5]))
def test_durations_off_the_scale_are_counted(duration):
    histogram = Histogram()
    histogram.record(duration)
    assert histogram.quantiles([500, 1000]) == [duration, duration]


def test_quantiles_of_nothing_are_no_numbers():
    assert all(math.isnan(value) for value in Histogram().quantiles([500, 990]))


@given(PROCESSES, st.floats(0.1, 1e5), st.floats(0.001, 2), st.none() | st.integers(1, 3000), st.integers(0, 2**32))
def test_arrivals_rise_within_their_bounds(process, rate, seconds, limit, seed):
    times = list(islice(arrivals(process, rate, seconds, limit, seed), 5000))
    assert times == sorted(times)
    assert all(0 <= time < seconds for time in times)
    assert limit is None or len(times) <= limit


@given(st.floats(0.1, 1e5), st.integers(1, 3000))
def test_constant_arrivals_are_even(rate, count):
    times = list(arrivals("constant", rate, math.inf, count))
    np.testing.assert_allclose(times, np.arange(count) / rate)


@given(st.floats(0.1, 1e5), st.integers(0, 2**32))
def test_poisson_gaps_are_exponential(rate, seed):
    count = 4000
    gaps = np.diff(list(arrivals("poisson", rate, math.inf, count + 1, seed))) * rate
    # Mean and variance of an exponential gap of rate 1 are 1; so many gaps stray by six deviations at most.
    assert abs(gaps.mean() - 1) < 6 / math.sqrt(count)
    assert abs(gaps.var() - 1) < 6 * math.sqrt(8 / count)
    assert abs(np.corrcoef(gaps[:-1], gaps[1:])[0, 1]) < 6 / math.sqrt(count)


@pytest.mark.parametrize(
    ("options", "requests"),
    [
        (["--model", "gru", "--rows", 3, "--steps", 5], 40),
        (["--model", "both-ways", "--format", "safetensors", "--returns", "last,h_n"], 40),
        (["--model", "lstm", "--call", "step", "--rows", 2], 40),
        (["--model", "lstm-proj", "--call", "step", "--format", "safetensors"], 40),
        (["--model", "gru-two-versions", "--version", "1", "--rate", 400], 40),
        (["--model", "tanh", "--call", "step", "--rate", 300, "--arrivals", "constant"], 40),
    ],
)
def test_sends_what_was_asked_for_and_no_more(service, tmp_path, options, requests):
    before = posts(service)
    summary, _ = measured(tmp_path, service.url, *options, "--requests", requests, "--seconds", 60)
    assert summary["due"] == summary["succeeded"] == requests
    assert posts(service) - before == requests + 1  # the look-up


@pytest.mark.parametrize("options", [["--window", 8], ["--rate", 500], ["--rate", 500, "--window", 4]])
def test_streams_are_one_request_each(service, tmp_path, options):
    before = posts(service)
    stream = ["--model", "gru", "--call", "stream", "--connections", 3, "--returns", "predictions"]
    summary, _ = measured(tmp_path, service.url, *stream, "--requests", 100, "--seconds", 60, *options)
    assert summary["succeeded"] == 100
    until(lambda: posts(service) - before == 3 + 1, "three streams have ended, after one look-up")


def test_the_rate_is_kept_for_the_time_asked(service, tmp_path):
    options = ["--model", "tanh", "--call", "step", "--rate", 200, "--arrivals", "constant", "--seconds", 0.5]
    summary, text = measured(tmp_path, service.url, *options)
    assert summary["due"] == 100
    assert summary["seconds"] >= 0.5
    assert summary["generator_lag_ms"]["p50"] is not None
    assert summary["asked"] | {"rate": 200, "process": "constant", "model": "tanh", "steps": 1} == summary["asked"]
    assert "asked for 200/s" in text


def test_a_closed_loop_ends_with_its_time(service, tmp_path):
    summary, _ = measured(tmp_path, service.url, "--model", "tanh", "--seconds", 0.3, "--connections", 2)
    assert summary["succeeded"] > 0
    assert summary["asked_rate"] is None


def test_refusals_are_counted_and_not_sent_again(tmp_path):
    repository = write_repository(tmp_path / "models")
    busy = start(repository, tmp_path, max_queued_requests=1, compute_threads=1, preload="wide")
    try:
        options = ["--model", "wide", "--steps", 256, "--rows", 4, "--format", "safetensors", "--connections", 32]
        before = posts(busy)
        summary, text = measured(tmp_path, busy.url, *options, "--requests", 200, "--seconds", 60, code=1)
        assert posts(busy) - before == 200 + 1
    finally:
        busy.stop()
    assert summary["refused"] == summary["errors"]["503 service-full"] > 0
    assert summary["succeeded"] > 0
    assert summary["refusal_latency_ms"]["p99"] is not None
    assert f"{summary['refused']:,} × 503 service-full" in text


def test_an_error_in_a_stream_fails_its_lines(service, tmp_path):
    options = ["--model", "explodes", "--call", "stream", "--connections", 1, "--rate", 200, "--requests", 20]
    summary, _ = measured(tmp_path, service.url, *options, code=1)
    assert summary["errors"]["422 non-finite-output"] == summary["failed"] > 0


def test_ctrl_c_gives_the_summary_so_far(service, tmp_path):
    before = posts(service)
    command = [sys.executable, "-m", "service", "bench", service.url, "--model", "gru", "--call", "step", "--key", KEY]
    options = ["--rate", "200", "--seconds", "600", "--json", str(tmp_path / "summary.json")]
    process = subprocess.Popen([*command, *options], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    until(lambda: posts(service) - before > 20, "requests arrive", 30)
    process.send_signal(signal.SIGINT)
    text, _ = process.communicate(timeout=30)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert process.returncode == 0
    assert summary["interrupted"]
    assert summary["succeeded"] > 10
    assert "succeeded" in text
    assert KEY not in text + (tmp_path / "summary.json").read_text()


def test_progress_is_drawn_on_a_terminal(service):
    options = ["--model", "gru", "--rate", "100", "--seconds", "1.5", "--returns", "nonsense", "--key", KEY]
    command = [sys.executable, "-m", "service", "bench", service.url, *options]
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "150"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=theirs)
    os.close(theirs)
    drawn = b""
    with contextlib.suppress(OSError):  # a terminal whose other side is closed cannot be read
        while data := os.read(ours, 4096):
            drawn += data
    os.close(ours)
    assert process.wait(30) == 1
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn.decode())
    assert re.search(r"s  0 of 100/s  in flight \d+  p50 –  p99 –  \d+ × 422 invalid-request", text), text


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ([], 2, "name a model with --model; there are: both-ways, "),
        (["--model", "none"], 2, "answered 404: there is no model 'none'"),
        (["--model", "tanh", "--version", "9"], 2, 'model "tanh" has no version 9; there are: 1'),
        (["--model", "both-ways", "--call", "step"], 2, 'model "both-ways" is bidirectional and cannot be stepped'),
        (["--model", "tanh", "--rate", "0"], 2, "--rate is 0; expected more than 0 and at most 100000"),
        (["--model", "tanh", "--rate", "100001"], 2, "--rate is 100001"),
        (["--model", "tanh", "--rate", "nan"], 2, "--rate is nan"),
        (["--model", "tanh", "--seconds", "3601"], 2, "--seconds is 3601; expected more than 0 and at most 3600"),
        (["--model", "tanh", "--connections", "5000"], 2, "less than or equal to 4096"),
        (["--model", "tanh", "--call", "step", "--steps", "3"], 2, "--steps is for --call forward"),
        (["--model", "tanh", "--call", "stream", "--rows", "3"], 2, "a stream is one row, in JSON"),
        (["--model", "tanh", "--window", "3"], 2, "--window is for --call stream"),
        (["--model", "tanh", "--json", "/nowhere/at/all.json"], 2, "--json: there is no folder /nowhere/at"),
        (["--model", "tanh", "--key", "wrong"], 1, "answered 401"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_sent(service, options, code, message):
    before = posts(service)
    result = bench(service.url, *options)
    assert result.exit_code == code, result.output
    assert message in result.stderr
    assert posts(service) - before <= 1


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://host", "http://", "http://user:pw@host", "http://host:x"])
def test_urls_that_are_none(url):
    assert bench(url).exit_code == 2


def test_nobody_there():
    with misbehaving(hangs_up) as url:
        pass
    result = bench(url, "--model", "m")
    assert result.exit_code == 1
    assert "Connection refused" in result.stderr


MODEL = {
    "name": "m",
    "state": "available",
    "versions": [{"version": "1", "state": "available"}],
    "kind": "rnn",
    "input_size": 2,
    "hidden_size": 3,
    "num_layers": 1,
    "proj_size": 0,
    "bidirectional": False,
}


def reply(status="200 OK", body=b"{}", head=""):
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{head}\r\n".encode() + body


def hangs_up(*_):
    return False


def says(data, *, then_hangs_up=False):
    return lambda handler, _: handler.wfile.write(data) and not then_hangs_up


@contextlib.contextmanager
def misbehaving(answer, model=MODEL, tls=None):
    """A server at /prefix with one model; `answer(handler, n)` answers request n; if not true, it hangs up."""
    count = iter(range(10**6))

    class Handler(socketserver.StreamRequestHandler):
        def handle(self):
            while line := self.rfile.readline():
                head = b"".join(iter(self.rfile.readline, b"\r\n"))
                if line.startswith(b"GET"):
                    good = line.startswith(b"GET /prefix/models/m ")
                    self.wfile.write(reply(body=json.dumps(model).encode()) if good else reply("404 Not Found"))
                    continue
                self.rfile.read(int(re.search(rb"Content-Length: (\d+)", head)[1]))
                if not answer(self, next(count)):
                    return

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads, block_on_close, request_queue_size = True, False, 128

        def handle_error(self, request, client_address):  # clients may hang up
            pass

    with Server(("127.0.0.1", 0), Handler) as server:
        if tls:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http{'s' if tls else ''}://127.0.0.1:{server.server_address[1]}/prefix/"
        server.shutdown()
        thread.join()


def test_latency_counts_from_when_a_request_was_due(tmp_path):
    def stall(handler, n):
        if n == 0:
            time.sleep(0.5)
        return handler.wfile.write(reply())

    with misbehaving(stall) as url:
        options = ["--model", "m", "--rate", 100, "--arrivals", "constant", "--requests", 20, "--connections", 1]
        summary, text = measured(tmp_path, url, *options)
    # Half are due within 0.09 s, and nothing is answered before 0.5 s.
    assert summary["latency_ms"]["p50"] >= 400
    assert summary["waited_for_connection"] == 19
    assert "found all 1 connections busy" in text
    assert "the model was not loaded when the run began" in text


@pytest.mark.parametrize("rate", [[], ["--rate", 400]])
@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (hangs_up, "connection lost"),
        (says(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort", then_hangs_up=True), "connection lost"),
        (says(b"SSH-2.0\r\n\r\n"), "the reply is not HTTP"),
        (says(reply("302 Found", head="Location: /\r\n")), "302 without a problem type"),
        (says(reply("500 Error", b'{"type": "\\u001b[2J"}')), "500 without a problem type"),
        (says(reply("429 No", b'{"type": "/problems/x-y"}')), "429 x-y"),
    ],
)
def test_failures_are_named(tmp_path, rate, answer, error):
    with misbehaving(answer) as url:
        options = ["--model", "m", "--connections", 2, "--requests", 6]
        summary, _ = measured(tmp_path, url, *options, *rate, code=1)
    assert summary["errors"] == {error: 6}
    assert (summary["refused"] == 6) == (error == "429 x-y")


@pytest.mark.parametrize("rate", [[], ["--rate", 100]])
def test_silence_times_out(tmp_path, rate):
    over = threading.Event()
    with misbehaving(lambda *_: over.wait(30) and hangs_up()) as url:
        options = ["--model", "m", "--connections", 2, "--requests", 5, "--timeout", 0.2, "--seconds", 60]
        summary, _ = measured(tmp_path, url, *options, *rate, code=1)
        over.set()
    assert summary["errors"] == {"timed out": 5}


@pytest.mark.parametrize("rate", [[], ["--rate", 400]])
def test_connections_that_the_server_closes_are_replaced(tmp_path, rate):
    with misbehaving(says(reply(head="Connection: close\r\n"))) as url:
        summary, _ = measured(tmp_path, url, "--model", "m", "--connections", 2, "--requests", 30, *rate)
    assert summary["succeeded"] == 30


@pytest.mark.parametrize("rate", [[], ["--rate", 400]])
def test_a_server_that_goes_away(tmp_path, rate):
    def answer(handler, n):
        if n == 3:
            handler.server.socket.shutdown(socket.SHUT_RDWR)
            return hangs_up()
        return handler.wfile.write(reply())

    with misbehaving(answer) as url:
        options = ["--model", "m", "--connections", 1, "--requests", 6]
        summary, _ = measured(tmp_path, url, *options, *rate, code=1)
    assert summary["succeeded"] == 3
    assert summary["errors"] == {"connection lost": 1, "cannot connect: Connection refused": 2}


@pytest.mark.skipif(not shutil.which("openssl"), reason="makes a certificate with openssl")
def test_tls_checks_the_certificate(tmp_path, monkeypatch):
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    request = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=test"]
    name = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*request, *name], check=True, capture_output=True)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    with misbehaving(says(reply()), tls=tls) as url:
        refused = bench(url, "--model", "m")
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        summary, _ = measured(tmp_path, url, "--model", "m", "--connections", 2, "--requests", 10)
    assert refused.exit_code == 1
    assert "CERTIFICATE_VERIFY_FAILED" in refused.stderr
    assert summary["succeeded"] == 10


def test_interim_replies_are_no_answers(tmp_path):
    with misbehaving(says(b"HTTP/1.1 103 Early Hints\r\n\r\n" + reply())) as url:
        summary, _ = measured(tmp_path, url, "--model", "m", "--connections", 2, "--requests", 10)
    assert summary["succeeded"] == 10


@pytest.mark.parametrize("model", [[], {"name": "m"}, MODEL | {"input_size": None}])
def test_something_else_than_the_service(model):
    with misbehaving(hangs_up, model) as url:
        result = bench(url, "--model", "m")
        assert result.exit_code == 1
        assert "is it an rnn-service?" in result.stderr
        assert bench(url + "elsewhere", "--model", "m").exit_code == 1


def test_a_model_that_failed_is_not_called():
    with misbehaving(hangs_up, MODEL | {"kind": None, "reason": "config.json is missing"}) as url:
        result = bench(url, "--model", "m")
    assert result.exit_code == 2
    assert 'model "m" cannot be served: config.json is missing' in result.stderr


def test_help_leaves_the_libraries_alone():
    script = (
        "import sys; from service.cli import main; sys.argv = ['rnn-service', 'bench', '--help']\n"
        "try: main()\n"
        "finally: assert not {'torch', 'numpy', 'uvloop', 'httptools', 'service.loadgen'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Example: rnn-service bench " in done.stdout
