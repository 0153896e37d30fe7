"""Calls of sessions that several tests make."""

import numpy as np

from .conftest import ADMIN_KEY
from .models import SPECS
from .running import Service

ADMIN = {"authorization": f"Bearer {ADMIN_KEY}"}


def vectors(name: str, count: int, seed: int = 0) -> np.ndarray:
    """Inputs (count, I) of a model."""
    return np.random.default_rng(seed).standard_normal((count, SPECS[name].input_size)).astype(np.float32)


def opened(service: Service, name: str, **fields) -> str:
    """Open a session; return its id."""
    reply = service.post("/cell/sessions", {"model": name, **fields})
    assert reply.status_code == 201, reply.text
    assert reply.headers["location"] == f"/cell/sessions/{reply.json()['session']}"
    return reply.json()["session"]


def stepped(service: Service, session: str, inputs, step: int | None = None, **fields) -> dict:
    """Run one step (I) or several (k, I); return the reply."""
    numbered = {} if step is None else {"step": step}
    body = {"session": session, "inputs": np.asarray(inputs).tolist(), **numbered, **fields}
    reply = service.post("/cell/step", body)
    assert reply.status_code == 200, reply.text
    return reply.json()


def steps_done(service: Service, session: str) -> int:
    return service.get(f"/cell/sessions/{session}").json()["step"]
