"""SIGTERM: what runs is finished, streams are told, and the exit code is 0 before the deadline."""

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from .problems import assert_document, assert_problem
from .raw import Wire, chunk, head, post, stream_head
from .running import ROOT, until

LONG = json.dumps({"model": "wide", "inputs": [[0.1] * 64] * 2500, "returns": ["last"]}).encode()


def running_requests(service):
    line = next(row for row in service.get("/metrics").text.splitlines() if row.startswith("rnn_queued_requests "))
    return float(line.split()[1])


def test_everything_that_can_be_under_way(launch):
    """A request that runs, a stream that waits, a stream not yet opened, and connections that are idle."""
    service = launch(shutdown_seconds=20)
    with Wire(service) as long, Wire(service) as stream, Wire(service) as fresh, Wire(service) as idle:
        fresh.send(stream_head("/cell/step?model=tanh"))
        stream.send(stream_head("/cell/step?model=tanh") + chunk(b"[1,2,3,4]\n"))
        assert stream.status_and_headers()[0] == 200
        assert json.loads(stream.chunk())["step"] == 1
        idle.send(head("GET", "/health/live"))
        assert idle.reply().status == 200
        long.send(post("/rnn/forward", LONG))
        until(lambda: running_requests(service) == 1, "the long request runs", every=0.001)

        begun = time.monotonic()
        service.signal_to_stop()
        last = json.loads(stream.chunk())
        assert_document(last["error"], 503, "service-draining", "shutting down")
        assert stream.chunk() == b""
        assert stream.is_closed()
        assert_problem(fresh.reply(), 503, "service-draining")
        assert idle.is_closed()
        reply = long.reply()
        assert reply.status == 200
        assert reply.json().keys() == {"last", "model", "version"}
        assert long.is_closed()
        service.check_ended()
        assert time.monotonic() - begun < 20


def test_a_stream_that_is_busy_when_the_signal_comes(launch):
    """It never stops to send, and is told all the same."""
    service = launch(shutdown_seconds=20)
    with Wire(service) as wire, ThreadPoolExecutor(1) as pool:
        wire.send(stream_head("/cell/step?model=tanh") + chunk(b"[1,2,3,4]\n"))
        assert wire.status_and_headers()[0] == 200

        def send_on():
            try:
                while True:
                    wire.send(chunk(b"[1,2,3,4]\n" * 50))
            except OSError:
                return

        sending = pool.submit(send_on)
        answers = wire.chunk()
        service.signal_to_stop()
        while piece := wire.chunk():
            answers += piece
        sending.result(20)
    *steps, last = answers.splitlines()
    assert [json.loads(step)["step"] for step in steps] == list(range(1, len(steps) + 1))
    assert_document(json.loads(last)["error"], 503, "service-draining")
    service.check_ended()


def test_clients_that_do_not_move_cannot_keep_it_alive(launch):
    """Half a body, half a head, a reply that nobody reads: none of them is waited for beyond the deadline."""
    service = launch(shutdown_seconds=2, body_timeout_seconds=60, header_timeout_seconds=60)
    body = json.dumps({"model": "tanh", "inputs": [[0.1] * 4] * 60_000, "returns": ["outputs"]}).encode()
    with Wire(service) as half_body, Wire(service) as half_head, Wire(service, receive_buffer=4096) as unread:
        half_body.send(head("POST", "/rnn/forward", {"Content-Length": 100}) + b"{")
        half_head.send(b"GET / HT")
        unread.send(post("/rnn/forward", body))
        until(lambda: '"sent_bytes"' in service.log(), "the reply is on its way")
        service.signal_to_stop()
        service.check_ended()


def test_a_stop_at_once_after_the_start(launch):
    launch().stop()


def test_an_interrupt_from_the_keyboard_is_obeyed_as_well(launch):
    service = launch()
    service.process.send_signal(2)
    service.check_ended()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"models": "/nowhere"}, ("/nowhere",)),
        ({"port": "99999"}, ("RNN_PORT", "99999")),
        ({"device": "tpu"}, ("RNN_DEVICE", "tpu")),
        ({"max_body_bytes": "-1"}, ("RNN_MAX_BODY_BYTES",)),
    ],
)
def test_what_cannot_start_says_why_and_fails(tmp_path, settings, words):
    env = {name: value for name, value in os.environ.items() if not name.startswith("RNN_")} | {"PYTHONPATH": str(ROOT)}
    env |= {"RNN_PORT": "0"} | {f"RNN_{name.upper()}": value for name, value in settings.items()}
    command = [sys.executable, "-m", "service", "serve"]
    ended = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode != 0
    said = ended.stdout + ended.stderr
    assert all(word in said for word in words), said
    assert "Traceback" not in said, said
