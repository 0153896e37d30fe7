"""SIGTERM: what runs is finished, streams are told, and the exit code is 0."""

import json
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from .problems import assert_document, assert_problem
from .raw import Wire, chunk, head, post, stream_head
from .running import serve, until

LONG, SHORT = (
    json.dumps({"model": "wide", "inputs": [[1] * 64] * steps, "returns": ["last"]}, separators=(",", ":")).encode()
    for steps in (20_000, 500)
)


def test_stop_finishes_what_is_under_way(launch):
    """Requests that run or wait for compute, a stream that waits, one not yet opened, and an idle connection."""
    service = launch(shutdown_seconds=60, header_timeout_seconds=60, compute_threads=1)

    def queued():
        return service.metric("rnn_queued_requests")

    with ExitStack() as stack:
        long, short, stream, fresh, idle = (stack.enter_context(Wire(service)) for _ in range(5))
        fresh.send(stream_head("/cell/step?model=tanh"))
        stream.send(stream_head("/cell/step?model=tanh") + chunk(b"[1,2,3,4]\n"))
        assert stream.status_and_headers()[0] == 200
        assert json.loads(stream.chunk())["step"] == 1
        idle.send(head("GET", "/health/live"))
        assert idle.reply().status == 200
        long.send(post("/rnn/forward", LONG))
        until(lambda: queued() == 1, "the long request is under way", every=0.001)
        short.send(post("/rnn/forward", SHORT))
        until(lambda: queued() == 2 or short.has_answer(), "both requests are under way", every=0.001)
        service.signal_to_stop()
        last = json.loads(stream.chunk())
        assert_document(last["error"], 503, "service-draining", "shutting down")
        assert stream.chunk() == b""
        assert stream.is_closed()
        assert_problem(fresh.reply(), 503, "service-draining")
        assert idle.is_closed()
        for wire in (short, long):
            reply = wire.reply()
            assert reply.status == 200
            assert reply.json().keys() == {"last", "model", "version"}
            assert wire.is_closed()
        service.check_ended()


def test_stop_ends_a_stream_that_never_pauses(launch):
    service = launch(shutdown_seconds=60)
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
        sending.result()
    *steps, last = answers.splitlines()
    assert [json.loads(step)["step"] for step in steps] == list(range(1, len(steps) + 1))
    assert_document(json.loads(last)["error"], 503, "service-draining")
    service.check_ended()


def test_idle_clients_do_not_delay_the_stop(launch):
    """Half a body, half a head, a reply that nobody reads: after `shutdown_seconds` nobody is waited for."""
    service = launch(shutdown_seconds=2, body_timeout_seconds=600, header_timeout_seconds=600)
    body = json.dumps({"model": "tanh", "inputs": [[0.1] * 4] * 60_000, "returns": ["outputs"]}).encode()
    with Wire(service) as half_body, Wire(service) as half_head, Wire(service, receive_buffer=4096) as unread:
        half_body.send(head("POST", "/rnn/forward", {"Content-Length": 100}) + b"{")
        half_head.send(b"GET / HT")
        unread.send(post("/rnn/forward", body))
        until(lambda: '"sent_bytes"' in service.log(), "the reply is on its way")
        service.signal_to_stop()
        service.check_ended()


def test_interrupt_right_after_start_stops(launch):
    service = launch()
    service.process.send_signal(signal.SIGINT)
    service.check_ended()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"models": "/nowhere"}, ("/nowhere",)),
        ({"max_body_bytes": "-1"}, ("RNN_MAX_BODY_BYTES",)),
    ],
)
def test_failed_start_says_why(tmp_path, settings, words):
    ended = serve(tmp_path, **settings)
    assert ended.returncode != 0
    said = ended.stdout + ended.stderr
    assert all(word in said for word in words), said
    assert "Traceback" not in said, said
