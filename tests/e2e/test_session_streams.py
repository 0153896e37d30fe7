"""Streams of sessions: whatever happens to the connection, every step runs once and its answer can be had again."""

import random
import signal
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from safetensors.numpy import load, save

from .models import SPECS
from .raw import Wire
from .relay import Relay
from .running import until
from .sockets import BINARY, PING, TEXT, closing, frame, received, upgraded
from .talks import KINDS, Refused, Talk
from .watching import memory_returns, others_are_served

NAME = "gru"
WIDTH = SPECS[NAME].hidden_size
LIVES = {"ndjson": 12_000, "text": 12_000, "binary": 2_000}
"""Bytes that a connection lives for at most: each a fraction of a stream."""


def vectors(count, seed=0, name=NAME):
    return np.random.default_rng(seed).standard_normal((count, SPECS[name].input_size)).astype(np.float32)


def opened(service, name=NAME):
    reply = service.post("/cell/sessions", {"model": name})
    assert reply.status_code == 201, reply.text
    return reply.json()["session"]


def in_one_run(service, inputs, name=NAME):
    """Outputs (T,P) and the final h of the same steps in one call that keeps nothing."""
    body = save({"inputs": inputs}, {"model": name, "returns": "outputs,h_n"})
    reply = service.post("/rnn/forward", content=body, headers={"Content-Type": "application/vnd.safetensors"})
    assert reply.status_code == 200, reply.text
    arrays = load(reply.content)
    return arrays["outputs"], arrays["h_n"]


def stands_at(service, session):
    return service.get(f"/cell/sessions/{session}").json()["step"]


def check(service, session, inputs, outputs, name=NAME):
    """The session has done these steps and no other, and they were answered with these outputs, to the bit."""
    wanted, h = in_one_run(service, inputs, name)
    assert np.array(outputs, np.float32).tobytes() == wanted.tobytes()
    snapshot = service.get(f"/cell/sessions/{session}?state=true").json()
    assert snapshot["step"] == len(inputs)
    assert np.array(snapshot["h"], np.float32).tobytes() == h.tobytes()


def in_pieces(inputs, rng, longest=20):
    while len(inputs):
        size = rng.randint(1, longest)
        yield inputs[:size]
        inputs = inputs[size:]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("numbered", ["lines", "opening", "no"])
def test_a_stream_of_a_session_equals_one_run(service, kind, numbered):
    session, inputs = opened(service), vectors(300)
    with Talk(service, kind, f"session={session}", step=1 if numbered == "opening" else None) as talk:
        sent = 0
        for piece in in_pieces(inputs, random.Random(kind + numbered)):
            talk.send(piece, sent + 1 if numbered == "lines" else None)
            sent += len(piece)
        answers = talk.receive_steps(len(inputs), WIDTH)
    assert list(answers) == list(range(1, len(inputs) + 1))
    check(service, session, inputs, list(answers.values()))


def resumed(service, kind, session, inputs, rng, *, numbered):
    """Outputs of all steps, however often the connection is lost on the way: each begins after the last answer."""
    outputs = []
    while len(outputs) < len(inputs):
        try:
            with Talk(service, kind, f"session={session}", step=len(outputs) + 1) as talk:
                sent = len(outputs)
                pieces = in_pieces(inputs[sent:], rng)
                while len(outputs) < len(inputs):
                    while sent - len(outputs) < 64 and (piece := next(pieces, None)) is not None:
                        talk.send(piece, sent + 1 if numbered else None)
                        sent += len(piece)
                    answers = talk.receive(WIDTH)
                    assert list(answers) == list(range(len(outputs) + 1, len(outputs) + 1 + len(answers)))
                    outputs += answers.values()
        except OSError:
            continue
    return outputs


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("numbered", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_a_stream_goes_on_wherever_its_connection_was_cut(service, kind, numbered, seed):
    session, inputs, rng = opened(service), vectors(600, seed), random.Random(seed)
    relay = Relay(service.port, (rng.randint(500, LIVES[kind]) for _ in range(1000)))
    try:
        outputs = resumed(relay, kind, session, inputs, rng, numbered=numbered)
    finally:
        relay.close()
    assert relay.cuts > 4
    check(service, session, inputs, outputs)


def test_steps_that_are_still_under_way_can_be_sent_again_cut_otherwise(service):
    """A client that comes back at once meets its own steps, which compute on another thread."""
    name, width = "wide", SPECS["wide"].hidden_size
    inputs = vectors(400, name=name)
    wanted, _ = in_one_run(service, inputs[:10], name)
    for _ in range(3):
        session = opened(service, name)
        with Talk(service, "binary", f"session={session}", step=1) as lost:
            lost.send(inputs)
        with Talk(service, "binary", f"session={session}", step=1) as talk:
            talk.send(inputs[:10])
            answers = talk.receive_steps(10, width)
        assert np.array(list(answers.values()), np.float32).tobytes() == wanted.tobytes()


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_may_begin_with_any_of_the_latest_steps(service, kind):
    window = service.post("/cell/sessions", {"model": NAME}).json()["replay_steps"]
    session, inputs = opened(service), vectors(3 * window)
    with Talk(service, kind, f"session={session}") as talk:
        for piece in in_pieces(inputs[:-5], random.Random(kind), 7):
            talk.send(piece)
        answers = talk.receive_steps(len(inputs) - 5, WIDTH)
    first = len(inputs) - 5 - window + 1
    with Talk(service, kind, f"session={session}", step=first) as talk:
        talk.send(inputs[first - 1 :])  # and five new ones
        again = talk.receive_steps(window + 5, WIDTH)
    assert all(again[step] == answers[step] for step in answers if step >= first)
    check(service, session, inputs, list((answers | again).values()))
    with Talk(service, kind, f"session={session}", step=1) as talk:
        talk.send(inputs[:1])
        with pytest.raises(Refused) as refusal:
            talk.receive(WIDTH)
    problem = refusal.value.problem
    assert (problem["status"], problem["type"]) == (409, "/problems/step-out-of-order")
    assert problem["expected"] == len(inputs) + 1
    assert refusal.value.code == (0 if kind == "ndjson" else 1008)


@pytest.mark.parametrize("kind", KINDS)
def test_other_inputs_for_a_step_that_was_done_are_a_last_line(service, kind):
    session, inputs = opened(service), vectors(6)
    with Talk(service, kind, f"session={session}") as talk:
        talk.send(inputs)
        answers = talk.receive_steps(6, WIDTH)
    with Talk(service, kind, f"session={session}", step=3) as talk:
        talk.send(inputs[2:4])
        assert talk.receive_steps(2, WIDTH) == {step: answers[step] for step in (3, 4)}
        talk.send(-inputs[4:])
        with pytest.raises(Refused) as refusal:
            talk.receive(WIDTH)
    assert (refusal.value.problem["status"], refusal.value.problem["type"]) == (409, "/problems/step-conflict")
    check(service, session, inputs, list(answers.values()))


@pytest.mark.parametrize("kind", KINDS)
def test_a_session_that_is_deleted_ends_its_open_stream(service, kind):
    session = opened(service)
    with Talk(service, kind, f"session={session}") as talk:
        talk.send(vectors(3))
        talk.receive_steps(3, WIDTH)
        assert service._http.delete(f"{service.url}/cell/sessions/{session}").status_code == 204
        talk.send(vectors(1))
        with pytest.raises(Refused) as refusal:
            talk.receive(WIDTH)
    problem = refusal.value.problem
    assert (problem["status"], problem["reason"], problem["step"]) == (410, "deleted", 3)
    assert ("frame 2" if kind == "binary" else "line 4") in problem["detail"]
    with Talk(service, "ndjson", f"session={session}") as talk:
        talk.send(vectors(1))
        with pytest.raises(Refused, match="session-gone"):
            talk.receive(WIDTH)


def test_streams_of_one_session_take_turns(service):
    """Each step of either runs once, in an order that the numbers of the answers tell."""
    session, count = opened(service), 300

    def play(kind, seed):
        """Inputs by the number that the answer gave them."""
        inputs, rng = vectors(count, seed), random.Random(seed)
        taken = {}
        with Talk(service, kind, f"session={session}") as talk:
            for piece in in_pieces(inputs, rng, 5):
                talk.send(piece)
                for step, outputs in talk.receive_steps(len(piece), WIDTH).items():
                    taken[step] = inputs[len(taken)], outputs
        return taken

    with ThreadPoolExecutor(3) as pool:
        parts = list(pool.map(play, ("ndjson", "text", "ndjson"), (1, 2, 3)))
    together = parts[0] | parts[1] | parts[2]
    steps = sorted(together)
    assert steps == list(range(1, 3 * count + 1))
    check(service, session, np.stack([together[step][0] for step in steps]), [together[step][1] for step in steps])


def test_streams_that_send_the_same_steps_get_the_same_answers(service):
    session, inputs = opened(service), vectors(40)

    def play(kind):
        with Talk(service, kind, f"session={session}", step=1) as talk:
            for piece in in_pieces(inputs, random.Random(kind), 5):
                talk.send(piece)
            return list(talk.receive_steps(len(inputs), WIDTH).values())

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(play, KINDS * 2))
    outputs = np.array(answers, np.float32)
    assert all(one.tobytes() == outputs[0].tobytes() for one in outputs)
    check(service, session, inputs, answers[0])


@pytest.mark.parametrize("kind", KINDS)
def test_an_answered_step_outlives_the_process_that_is_told_to_stop(launch, tmp_path, kind):
    store = f"sqlite:///{tmp_path / 'sessions.db'}"
    service = launch(session_store=store)
    session, inputs = opened(service), vectors(4000)
    outputs, ended = [], None
    with Talk(service, kind, f"session={session}", step=1) as talk:
        pieces = in_pieces(inputs, random.Random(kind))
        sent = 0
        while ended is None:
            while sent - len(outputs) < 64 and (piece := next(pieces, None)) is not None:
                talk.send(piece)
                sent += len(piece)
            if len(outputs) > 500 and service.process.is_running():
                service.process.send_signal(signal.SIGTERM)
            try:
                outputs += talk.receive(WIDTH).values()
            except Refused as refusal:
                ended = refusal
    assert ended.problem["type"] == "/problems/service-draining"
    assert ended.code == (0 if kind == "ndjson" else 1012)
    assert 500 < len(outputs) < len(inputs)
    service.check_ended()
    service = launch(session_store=store)
    assert stands_at(service, session) >= len(outputs)
    outputs += resumed_from(service, kind, session, inputs, len(outputs))
    check(service, session, inputs, outputs)


def resumed_from(service, kind, session, inputs, done):
    with Talk(service, kind, f"session={session}", step=done + 1) as talk:
        outputs = []
        for piece in in_pieces(inputs[done:], random.Random(1), 500):
            talk.send(piece)
            outputs += talk.receive_steps(len(piece), WIDTH).values()
        return outputs


@pytest.mark.parametrize("kind", KINDS)
def test_a_client_that_never_reads_holds_nothing_but_its_own_session_up(impatient, kind):
    session, inputs = opened(impatient), vectors(500)

    def send_on(talk):
        for _ in range(5000):
            talk.send(inputs)

    with (
        others_are_served(impatient),
        memory_returns(impatient),
        Talk(impatient, kind, f"session={session}", seconds=0.5, receive_buffer=4096) as talk,
    ):
        with pytest.raises((TimeoutError, ConnectionError)):  # no more is taken, or the service has had enough
            send_on(talk)
        taken = stands_at(impatient, session)
        # Another connection goes on meanwhile: a turn is held for a block, and not while its answers are sent.
        with Talk(impatient, kind, f"session={session}") as other:
            other.send(inputs[:1])
            assert len(other.receive(WIDTH)) == 1
        assert stands_at(impatient, session) > taken
        until(lambda: "reader_too_slow" in impatient.log(), "the service has noticed", 20)


def test_a_session_outlives_a_connection_whose_other_end_is_gone(launch):
    """As a cable that was pulled: the old connection is open still when the client comes back on a new one."""
    service = launch(heartbeat_seconds=0.5)
    session, inputs = opened(service), vectors(20)
    with Wire(service) as silent:
        upgraded(silent, f"?session={session}&returns=outputs")
        silent.send(frame(BINARY, inputs[:10].tobytes()))
        until(lambda: stands_at(service, session) == 10, "the steps have run")
        with Talk(service, "binary", f"session={session}", step=6) as talk:  # what it heard of is less
            talk.send(inputs[5:])
            answers = talk.receive_steps(15, WIDTH)
        assert received(silent)[0] == BINARY
        assert received(silent)[0] == PING
        assert closing(silent)[0] == 1011
    wanted, _ = in_one_run(service, inputs)
    assert np.array(list(answers.values()), np.float32).tobytes() == wanted[5:].tobytes()
    assert stands_at(service, session) == 20


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
def test_garbage_ends_a_stream_and_leaves_its_session_where_it_was(service, garbage):
    session, inputs = opened(service), vectors(20)
    with others_are_served(service), memory_returns(service), Wire(service) as wire:
        upgraded(wire, f"?session={session}&returns=outputs")
        wire.send(frame(BINARY, inputs[:10].tobytes()))
        answers = np.frombuffer(received(wire)[1], "<f4").tolist()
        wire.send(garbage)
        assert closing(wire)[0] in (1002, 1007)
        assert wire.is_closed()
    with Talk(service, "binary", f"session={session}", step=11) as talk:
        talk.send(inputs[10:])
        outputs = talk.receive_steps(10, WIDTH)
    check(service, session, inputs, [*np.reshape(answers, (10, WIDTH)), *outputs.values()])


def test_binary_answers_carry_what_is_not_finite_and_text_answers_refuse_it(service):
    session, ones = opened(service, "explodes"), np.ones((4, 1), np.float32)
    with Talk(service, "binary", f"session={session}", step=1) as talk:
        talk.send(ones)
        assert np.isinf(talk.receive(2)[3]).all()
        talk.send(ones[:1])
        assert np.isnan(talk.receive(2)[5]).all()
    for kind in ("text", "ndjson"):
        with Talk(service, kind, f"session={session}", step=1) as talk:  # what was done, told in another way
            talk.send(ones)
            answers = talk.receive_steps(2, 2)
            assert list(answers) == [1, 2]
            with pytest.raises(Refused, match="non-finite-output"):
                talk.receive(2)
    assert stands_at(service, session) == 5
