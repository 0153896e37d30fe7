"""Random calls of sessions, through two services on one store, give the answers of a plain list of what was done."""

from dataclasses import dataclass, field

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, multiple, rule, run_state_machine_as_test

from tests.e2e.problems import assert_problem
from tests.stores.conftest import MODEL

WHO = st.integers(0, 1)
INPUTS = st.integers(0, 999).map(lambda seed: np.random.default_rng(seed).standard_normal((3, 4)).astype(np.float32))


@dataclass
class Tracked:
    """A session: what led from zeros to its state, its calls (number, inputs, reply), and whether the last is kept."""

    name: str
    initial: list
    history: list
    done: int = 0
    calls: list = field(default_factory=list)
    kept: bool = False
    deleted: bool = False


class SessionCalls(RuleBasedStateMachine):
    sessions = Bundle("sessions")

    def __init__(self, services):
        super().__init__()
        self.services = services

    def call(self, who, session, method, path="", ok=200, body=None):
        """A call of a session; None if it has ended, which every call must say."""
        call = getattr(self.services[who], method)
        reply = call("/cell/step", body) if body else call(f"/cell/sessions/{session.name}{path}")
        if session.deleted:
            assert assert_problem(reply, 410, "session-gone", "deleted")["step"] == session.done
            return None
        assert reply.status_code == ok, reply.text
        return reply

    def step(self, who, session, inputs, ok=200, **fields):
        body = {"session": session.name, "inputs": inputs.tolist(), "returns": ["outputs", "predictions", "h", "c"]}
        return self.call(who, session, "post", ok=ok, body=body | fields)

    @rule(target=sessions, who=WHO)
    def open(self, who):
        return Tracked(self.services[who].post("/cell/sessions", {"model": MODEL}).json()["session"], [], [])

    @rule(session=sessions, who=WHO, inputs=INPUTS, count=st.integers(1, 3), numbered=st.booleans())
    def next(self, session, who, inputs, count, numbered):
        number = session.done + 1
        if not (reply := self.step(who, session, inputs[:count], **({"step": number} if numbered else {}))):
            return
        session.history = [*session.history, *inputs[:count].tolist()]
        session.done += count
        session.calls.append((number, inputs[:count], reply.content))
        session.kept = True
        whole = self.services[who].post("/rnn/forward", {"model": MODEL, "inputs": session.history}).json()
        rows = {name: whole[name][-count:] for name in ("outputs", "predictions")}
        assert reply.json() == {**rows, "h": whole["h_n"][0], "c": whole["c_n"][0], "step": session.done}

    @rule(session=sessions, who=WHO, back=st.integers(1, 2), same=st.booleans())
    def repeat(self, session, who, back, same):
        """The last call, or the one before it, which is no more kept than a call before a reset."""
        if len(session.calls) < back:
            return
        number, inputs, answered = session.calls[-back]
        kept = session.kept and back == 1
        reply = self.step(who, session, inputs if same else inputs + 1, 200 if kept and same else 409, step=number)
        if reply and kept and same:
            assert reply.content == answered
        elif reply:
            slug, words = ("step-conflict", "was done with other inputs") if kept else ("step-out-of-order", "expects")
            assert_problem(reply, 409, slug, words)

    @rule(session=sessions, who=WHO, inputs=INPUTS, ahead=st.integers(1, 3))
    def skip_steps(self, session, who, inputs, ahead):
        if reply := self.step(who, session, inputs[:1], 409, step=session.done + 1 + ahead):
            assert assert_problem(reply, 409, "step-out-of-order")["expected"] == session.done + 1

    @rule(session=sessions, who=WHO)
    def reset(self, session, who):
        if reply := self.call(who, session, "post", "/reset"):
            session.history, session.kept = session.initial, False
            assert reply.json()["step"] == session.done

    @rule(target=sessions, session=sessions, who=WHO)
    def fork(self, session, who):
        if reply := self.call(who, session, "post", "/fork", 201):
            return Tracked(reply.json()["session"], session.history, session.history)
        return multiple()

    @rule(session=sessions, who=WHO)
    def delete(self, session, who):
        self.call(who, session, "delete", ok=204)
        session.deleted = True


def test_services_on_one_store_agree(services):
    run_state_machine_as_test(
        lambda: SessionCalls(services), settings=settings(max_examples=40, stateful_step_count=25, deadline=None)
    )
