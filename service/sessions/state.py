"""The state of a session as bytes: h (L,P), then c (L,H) of an LSTM, as little-endian float32."""

import numpy as np

from service.engine.interface import Floats
from service.spec import ModelSpec


def decoded(spec: ModelSpec, state: bytes) -> tuple[Floats, Floats | None]:
    """H (L,1,P), and c (L,1,H) or None; arrays that may be written to."""
    values = np.frombuffer(state, "<f4").astype(np.float32)
    split = spec.num_layers * spec.state_size
    h = values[:split].reshape(spec.num_layers, 1, spec.state_size)
    return h, values[split:].reshape(spec.num_layers, 1, spec.hidden_size) if spec.has_cell_state else None


def encoded(h: Floats, c: Floats | None) -> bytes:
    """The bytes of h (L,1,P) and c (L,1,H) or None."""
    return h.tobytes() if c is None else h.tobytes() + c.tobytes()


def zeros(spec: ModelSpec) -> bytes:
    """The state before the first step, if nothing else is said."""
    return bytes(4 * spec.num_layers * (spec.state_size + spec.has_cell_state * spec.hidden_size))
