"""Random calls of sequences, through two services on one store; services that end in the middle of sequences."""

from dataclasses import dataclass, field
from itertools import count

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from tests.e2e.models import write_model
from tests.e2e.running import start, until
from tests.stores.conftest import MODEL

RUNS = count(1)  # each run of the machine has sequences of its own
WHO = st.integers(0, 1)
SEQUENCES = st.sampled_from([1, 2, "1", "a b"])
INPUTS = st.integers(0, 999).map(lambda seed: np.random.default_rng(seed).standard_normal((3, 4)).astype(np.float32))
FLAGS = st.fixed_dictionaries({}, optional={"sequence_end": st.booleans(), "sequence_start": st.just(False)})


def infer(service, inputs, **parameters):
    """A call of single steps (k, 4)."""
    one = {"name": "inputs", "shape": inputs.shape, "datatype": "FP32", "data": inputs.ravel().tolist()}
    outputs = [{"name": name} for name in ("outputs", "predictions", "h", "c")]
    body = {"inputs": [one], "outputs": outputs, "parameters": parameters}
    return service.post(f"/v2/models/{MODEL}.step/infer", body)


def results(reply):
    assert reply.status_code == 200, reply.text
    return {one["name"]: one["data"] for one in reply.json()["outputs"]}


def expected(service, history, steps):
    """What the last steps of a sequence give, from one run of it."""
    whole = service.post("/rnn/forward", {"model": MODEL, "inputs": np.concatenate(history).tolist()}).json()
    found = {name: np.ravel(whole[name][-steps:]).tolist() for name in ("outputs", "predictions")}
    return found | {"h": whole["h_n"][0], "c": whole["c_n"][0]}


@dataclass
class Tracked:
    history: list = field(default_factory=list)  # inputs of each call
    done: int = 0
    live: bool = False
    last: tuple | None = None  # first step's number, inputs and reply


class SequenceCalls(RuleBasedStateMachine):
    def __init__(self, services):
        super().__init__()
        self.services, self.run, self.tracked = services, next(RUNS), {}

    def sequence(self, name):
        """Its id in this run, and what is known of it."""
        known = self.tracked.setdefault(name, Tracked())
        return (name + 10 * self.run if isinstance(name, int) else f"{name}{self.run}"), known

    @rule(name=SEQUENCES, who=WHO, inputs=INPUTS, steps=st.integers(1, 3), flags=FLAGS, numbered=st.booleans())
    def start(self, name, who, inputs, steps, flags, numbered):
        sequence, known = self.sequence(name)
        known.history, known.done, known.live = [], 0, True
        self._run(who, sequence, known, inputs[:steps], numbered, **flags | {"sequence_start": True})

    @rule(name=SEQUENCES, who=WHO, inputs=INPUTS, steps=st.integers(1, 3), flags=FLAGS, numbered=st.booleans())
    def go_on(self, name, who, inputs, steps, flags, numbered):
        sequence, known = self.sequence(name)
        if known.live:
            self._run(who, sequence, known, inputs[:steps], numbered, **flags)
        else:
            refused = infer(self.services[who], inputs[:steps], sequence_id=sequence, **flags)
            shown = sequence if isinstance(sequence, int) else f'"{sequence}"'
            words = f"has ended after step {known.done};" if known.done else "has not begun, or ended long ago;"
            assert refused.status_code == 400
            assert refused.json()["error"].startswith(f'sequence {shown} of model "{MODEL}" {words}')

    @rule(name=SEQUENCES, who=WHO, same=st.booleans())
    def repeat(self, name, who, same):
        sequence, known = self.sequence(name)
        if known.live:
            first, inputs, reply = known.last
            again = infer(self.services[who], inputs if same else inputs + 1, sequence_id=sequence, step=first)
            if same:
                assert again.content == reply.content
            else:
                assert (again.status_code, "other inputs" in again.json()["error"]) == (409, True)

    @rule(name=SEQUENCES, who=WHO, inputs=INPUTS, ahead=st.integers(1, 2))
    def skip_steps(self, name, who, inputs, ahead):
        sequence, known = self.sequence(name)
        if known.live:
            refused = infer(self.services[who], inputs, sequence_id=sequence, step=known.done + 1 + ahead)
            assert (refused.status_code, refused.headers["content-type"]) == (409, "application/json")
            assert f"expects {known.done + 1}" in refused.json()["error"]

    def _run(self, who, sequence, known, inputs, numbered, **flags):
        number = {"step": known.done + 1} if numbered else {}
        reply = infer(self.services[who], inputs, sequence_id=sequence, **flags, **number)
        known.last = known.done + 1, inputs, reply
        known.history.append(inputs)
        known.done += len(inputs)
        known.live = not flags.get("sequence_end")
        assert results(reply) == expected(self.services[who], known.history, len(inputs))
        assert reply.json()["parameters"] == {"sequence_id": sequence, "step": known.done}


def test_services_on_one_store_agree(services):
    run_state_machine_as_test(
        lambda: SequenceCalls(services), settings=settings(max_examples=30, stateful_step_count=25, deadline=None)
    )


@pytest.mark.parametrize(
    ("kind", "how"),
    [("sqlite", "terminate"), ("sqlite", "kill"), pytest.param("valkey", "kill", marks=pytest.mark.integration)],
)
def test_sequences_outlive_the_service(kind, how, url_of, tmp_path):
    """Numbered steps are sent again until they are answered, while the service ends and starts; each runs once."""
    write_model(tmp_path / "models", MODEL)
    url, service = url_of(kind), None
    inputs = np.random.default_rng(7).standard_normal((12, 1, 4)).astype(np.float32)
    last = {}
    for life in range(2):
        service = start(tmp_path / "models", tmp_path / str(life), session_store=url)
        for step in range(4 * life + 1, 4 * life + 5):
            for sequence in (3, "3"):
                flags = {"sequence_start": True} if step == 1 else {}
                last[sequence] = results(infer(service, inputs[step - 1], sequence_id=sequence, step=step, **flags))
                again = infer(service, inputs[step - 1], sequence_id=sequence, step=step)
                assert results(again) == last[sequence]
        for sequence in (3, "3"):
            assert last[sequence] == expected(service, inputs[: 4 * life + 4], 1)
        getattr(service.process, how)()
        until(lambda process=service.process: process.poll() is not None, "the service has ended")
