"""Streams of sessions: whatever happens to the connection, every step runs once and its answer can be had again."""

import random
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from safetensors.numpy import load

from .formats import post_arrays
from .models import SPECS
from .raw import Wire
from .relay import Relay
from .running import ANSWER_SECONDS, until
from .sessions import opened, steps_done, vectors
from .sockets import BINARY, TEXT, closing, frame, received, upgraded
from .step_streams import KINDS, Refused, StepStream
from .watching import RSS_TOLERANCE_MIB, memory_returns, others_are_served

NAME = "gru"
WIDTH = SPECS[NAME].hidden_size
LIVES = {"ndjson": 12_000, "text": 12_000, "binary": 2_000}
"""Bytes after which a connection is cut at the latest: each a fraction of a stream."""


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def in_one_run(service, inputs, name=NAME):
    """Outputs (T,P) and the final h of the same steps in one stateless call."""
    reply = post_arrays(service, "/rnn/forward", {"inputs": inputs}, model=name, returns="outputs,h_n")
    assert reply.status_code == 200, reply.text
    arrays = load(reply.content)
    return arrays["outputs"], arrays["h_n"]


def same_bits(outputs, wanted):
    return np.array(outputs, np.float32).tobytes() == wanted.tobytes()


def check(service, session, inputs, outputs):
    """The session has done these steps and no others, and they had these outputs, bit by bit."""
    wanted, h = in_one_run(service, inputs)
    assert same_bits(outputs, wanted)
    snapshot = service.get(f"/cell/sessions/{session}?state=true").json()
    assert snapshot["step"] == len(inputs)
    assert same_bits(snapshot["h"], h)


def in_pieces(inputs, rng, longest=20):
    while len(inputs):
        size = rng.randint(1, longest)
        yield inputs[:size]
        inputs = inputs[size:]


@pytest.mark.parametrize("numbered", ["lines", "opening", "no"])
def test_stream_of_session_equals_one_run(service, kind, numbered):
    session, inputs = opened(service, NAME), vectors(NAME, 300)
    with StepStream(service, kind, f"session={session}", step=1 if numbered == "opening" else None) as stream:
        sent = 0
        for piece in in_pieces(inputs, random.Random(kind + numbered)):
            stream.send(piece, sent + 1 if numbered == "lines" else None)
            sent += len(piece)
        answers = stream.receive_steps(len(inputs), WIDTH)
    assert list(answers) == list(range(1, len(inputs) + 1))
    check(service, session, inputs, list(answers.values()))


def resumed(service, kind, session, inputs, rng, *, numbered):
    """Outputs of all steps over connections that are cut: each stream begins after the last answer."""
    outputs = []
    while len(outputs) < len(inputs):
        try:
            with StepStream(service, kind, f"session={session}", step=len(outputs) + 1) as stream:
                sent = len(outputs)
                pieces = in_pieces(inputs[sent:], rng)
                while len(outputs) < len(inputs):
                    while sent - len(outputs) < 64 and (piece := next(pieces, None)) is not None:
                        stream.send(piece, sent + 1 if numbered else None)
                        sent += len(piece)
                    answers = stream.receive(WIDTH)
                    assert list(answers) == list(range(len(outputs) + 1, len(outputs) + 1 + len(answers)))
                    outputs += answers.values()
        except OSError:
            continue
    return outputs


@pytest.mark.parametrize("numbered", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_cut_stream_resumes_anywhere(service, kind, numbered, seed):
    session, inputs, rng = opened(service, NAME), vectors(NAME, 600, seed), random.Random(seed)
    relay = Relay(service.port, (rng.randint(500, LIVES[kind]) for _ in range(1000)))
    try:
        outputs = resumed(relay, kind, session, inputs, rng, numbered=numbered)
    finally:
        relay.close()
    assert relay.cuts > 4
    check(service, session, inputs, outputs)


def test_stream_may_begin_with_recent_step(service, kind):
    window = service.post("/cell/sessions", {"model": NAME}).json()["replay_steps"]
    session, inputs = opened(service, NAME), vectors(NAME, 3 * window)
    with StepStream(service, kind, f"session={session}") as stream:
        for piece in in_pieces(inputs[:-5], random.Random(kind), 7):
            stream.send(piece)
        answers = stream.receive_steps(len(inputs) - 5, WIDTH)
    first = len(inputs) - 5 - window + 1
    with StepStream(service, kind, f"session={session}", step=first) as stream:
        stream.send(inputs[first - 1 :])  # and five new ones
        again = stream.receive_steps(window + 5, WIDTH)
    assert all(again[step] == answers[step] for step in answers if step >= first)
    check(service, session, inputs, list((answers | again).values()))
    with StepStream(service, kind, f"session={session}", step=1) as stream:
        stream.send(inputs[:1])
        with pytest.raises(Refused) as refusal:
            stream.receive(WIDTH)
    problem = refusal.value.problem
    assert (problem["status"], problem["type"]) == (409, "/problems/step-out-of-order")
    assert problem["expected"] == len(inputs) + 1
    assert refusal.value.code == (0 if kind == "ndjson" else 1008)


def test_other_inputs_end_the_stream(service, kind):
    session, inputs = opened(service, NAME), vectors(NAME, 6)
    with StepStream(service, kind, f"session={session}") as stream:
        stream.send(inputs)
        answers = stream.receive_steps(6, WIDTH)
    with StepStream(service, kind, f"session={session}", step=3) as stream:
        stream.send(inputs[2:4])
        assert stream.receive_steps(2, WIDTH) == {step: answers[step] for step in (3, 4)}
        stream.send(-inputs[4:])
        with pytest.raises(Refused) as refusal:
            stream.receive(WIDTH)
    assert (refusal.value.problem["status"], refusal.value.problem["type"]) == (409, "/problems/step-conflict")
    check(service, session, inputs, list(answers.values()))


def test_deleted_session_ends_its_stream(service, kind):
    session = opened(service, NAME)
    with StepStream(service, kind, f"session={session}") as stream:
        stream.send(vectors(NAME, 3))
        stream.receive_steps(3, WIDTH)
        assert service.delete(f"/cell/sessions/{session}").status_code == 204
        stream.send(vectors(NAME, 1))
        with pytest.raises(Refused) as refusal:
            stream.receive(WIDTH)
    problem = refusal.value.problem
    assert (problem["status"], problem["reason"], problem["step"]) == (410, "deleted", 3)
    assert ("frame 2" if kind == "binary" else "line 4") in problem["detail"]
    with StepStream(service, "ndjson", f"session={session}") as stream:
        stream.send(vectors(NAME, 1))
        with pytest.raises(Refused, match="session-gone"):
            stream.receive(WIDTH)


def test_streams_of_one_session_take_turns(service):
    """Each step of either runs once, in the order that the numbers of the answers tell."""
    session, count = opened(service, NAME), 300

    def play(kind, seed):
        """Inputs and outputs by the number in the answer."""
        inputs, rng = vectors(NAME, count, seed), random.Random(seed)
        taken = {}
        with StepStream(service, kind, f"session={session}") as stream:
            for piece in in_pieces(inputs, rng, 5):
                stream.send(piece)
                for step, outputs in stream.receive_steps(len(piece), WIDTH).items():
                    taken[step] = inputs[len(taken)], outputs
        return taken

    with ThreadPoolExecutor(3) as pool:
        parts = list(pool.map(play, ("ndjson", "text", "ndjson"), (1, 2, 3)))
    together = parts[0] | parts[1] | parts[2]
    steps = sorted(together)
    assert steps == list(range(1, 3 * count + 1))
    check(service, session, np.stack([together[step][0] for step in steps]), [together[step][1] for step in steps])


def stepped_until_stopped(service, kind, session, inputs, enough):
    """Outputs of a stream that goes on until the service ends it, and why it does."""
    outputs, sent, pieces = [], 0, in_pieces(inputs, random.Random(kind))
    with StepStream(service, kind, f"session={session}", step=1) as stream:
        while True:
            while sent - len(outputs) < 64 and (piece := next(pieces, None)) is not None:
                stream.send(piece)
                sent += len(piece)
            try:
                outputs += stream.receive(WIDTH).values()
            except Refused as refusal:
                return outputs, refusal
            if len(outputs) > 500:
                enough.release()


def test_answered_steps_outlive_the_process(launch, tmp_path):
    store, inputs, enough = f"sqlite:///{tmp_path / 'sessions.db'}", vectors(NAME, 2000), threading.Semaphore(0)
    service = launch(session_store=store)
    sessions = {kind: opened(service, NAME) for kind in KINDS}
    with ThreadPoolExecutor(len(KINDS)) as pool:
        streams = {
            kind: pool.submit(stepped_until_stopped, service, kind, session, inputs, enough)
            for kind, session in sessions.items()
        }
        enough.acquire(timeout=ANSWER_SECONDS)
        service.signal_to_stop()
        answered = {kind: stream.result() for kind, stream in streams.items()}
    service.check_ended()
    service = launch(session_store=store)
    for kind, (outputs, refusal) in answered.items():
        assert refusal.problem["type"] == "/problems/service-draining"
        assert refusal.code == (0 if kind == "ndjson" else 1012)
        assert steps_done(service, sessions[kind]) >= len(outputs)
        with StepStream(service, kind, f"session={sessions[kind]}", step=len(outputs) + 1) as stream:
            for piece in in_pieces(inputs[len(outputs) :], random.Random(1), 500):
                stream.send(piece)
                outputs.extend(stream.receive_steps(len(piece), WIDTH).values())
        check(service, sessions[kind], inputs, outputs)


def test_unread_stream_holds_up_nobody(short_timeouts, kind):
    service = short_timeouts
    session, inputs, before = opened(service, NAME), vectors(NAME, 500), service.rss_mib

    def send_on(stream):
        for _ in range(5000):
            stream.send(inputs)

    with (
        others_are_served(service),
        memory_returns(service),
        StepStream(service, kind, f"session={session}", seconds=1, receive_buffer=4096) as stream,
    ):
        with pytest.raises((TimeoutError, ConnectionError)):  # the service reads no more, or has closed
            send_on(stream)
        assert service.rss_mib < before + RSS_TOLERANCE_MIB
        taken = steps_done(service, session)
        # A block of steps holds the session, and sending its answers does not.
        with StepStream(service, kind, f"session={session}") as other:
            other.send(inputs[:1])
            assert len(other.receive(WIDTH)) == 1
        assert steps_done(service, session) > taken
        until(lambda: not service.holds(stream.wire.port), "the client is cut")


@pytest.mark.parametrize(
    "garbage",
    [
        frame(TEXT, b"[1,2,3"),
        frame(TEXT, b'{"step":1}') * 500,
        frame(TEXT, b"\xff\xfe") * 500,
        frame(BINARY, b"abc") * 500,
        b"\xff" * 100_000,
        frame(3, b"x") * 500,
    ],
    ids=["cut short", "no inputs", "no UTF-8", "no steps", "no frames", "no opcode"],
)
def test_garbage_does_not_move_the_session(service, garbage):
    session, inputs = opened(service, NAME), vectors(NAME, 20)
    with others_are_served(service), memory_returns(service), Wire(service) as wire:
        upgraded(wire, f"?session={session}&returns=outputs")
        wire.send(frame(BINARY, inputs[:10].tobytes()))
        answers = np.frombuffer(received(wire)[1], "<f4").tolist()
        wire.send(garbage)
        assert closing(wire)[0] in (1002, 1007)
        assert wire.is_closed()
    with StepStream(service, "binary", f"session={session}", step=11) as stream:
        stream.send(inputs[10:])
        outputs = stream.receive_steps(10, WIDTH)
    check(service, session, inputs, [*np.reshape(answers, (10, WIDTH)), *outputs.values()])


def test_text_refuses_what_binary_carries(service):
    session, ones = opened(service, "explodes"), np.ones((4, 1), np.float32)
    with StepStream(service, "binary", f"session={session}", step=1) as stream:
        stream.send(ones)
        assert np.isinf(stream.receive(2)[3]).all()
        stream.send(ones[:1])
        assert np.isnan(stream.receive(2)[5]).all()
    for kind in ("text", "ndjson"):
        with StepStream(service, kind, f"session={session}", step=1) as stream:  # a replay in another format
            stream.send(ones)
            assert list(stream.receive_steps(2, 2)) == [1, 2]
            with pytest.raises(Refused, match="non-finite-output"):
                stream.receive(2)
    assert steps_done(service, session) == 5
