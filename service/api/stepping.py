"""What every way of stepping shares: which models step, what a step may ask for, and the forms of a state."""

from functools import cache, lru_cache
from typing import Any

import numpy as np

from service.api.request import Request
from service.api.shapes import FLOAT32, Target, wrong
from service.engine.interface import Floats
from service.errors import NotSteppable
from service.serving.registry import ModelVersion
from service.wire.arrays import Document, Ragged

_NEVER = (-1,)


def steppable(model: ModelVersion) -> ModelVersion:
    """The model, if it has a next step. Raises NotSteppable."""
    if model.spec.bidirectional:
        raise NotSteppable(
            f'model "{model.name}" is bidirectional: its backward direction starts at the end of the sequence, so '
            "there is no single next step; send whole sequences to /rnn/forward"
        )
    return model


def step_returns(names: list[Any] | None, target: Target, *, stateful: bool) -> frozenset[str]:
    """What to send back; the state by default only where the client keeps it. Raises InvalidRequest."""
    spec = target.spec
    if names is None:
        return _default_returns(spec.has_cell_state, bool(spec.out_features), stateful)
    impossible = {"c": f"is of kind {spec.kind}"} if not spec.has_cell_state else {}
    impossible |= {"predictions": "has no head"} if not spec.out_features else {}
    for index, name in enumerate(names):
        if name in impossible:
            raise wrong(f'returns[{index}] is {name}, and model "{target.name}" {impossible[name]}', "returns", index)
    return frozenset(names)


@cache
def _default_returns(has_cell_state: bool, has_head: bool, stateful: bool) -> frozenset[str]:
    states = {"h", "c"} if has_cell_state else {"h"}
    return frozenset({"outputs"} | ({"predictions"} if has_head else set()) | (set() if stateful else states))


def initial(value: Any, loc: str, shape: tuple[int, int, int], letter: str, batched: bool) -> Floats:
    """A state (L,B,·) that the engine may write into, from any of the shapes that mean it; zeros if none came."""
    if value is None:
        return np.zeros(shape, np.float32)
    layers, batch, width = shape
    came = None if isinstance(value, Ragged) else value.shape
    allowed = _state_shapes(layers, batch, width, batched)
    if came not in allowed:
        letters = ["(L,B,{})", "(B,{})", "({})", "(L,{})"]
        is_ = "ragged" if came is None else f"of shape {came}"
        names = [
            f"{name.format(letter)} = {sizes}"
            for name, sizes in zip(letters, allowed, strict=True)
            if sizes is not _NEVER
        ]
        raise wrong(f"{loc} is {is_}; expected {' or '.join(names)}", loc)
    # What was decoded from JSON is nobody else's; a view of a safetensors body must not be written into.
    mine: Floats = value if value.dtype == FLOAT32 and value.flags.writeable else np.array(value, np.float32)
    return mine.reshape(shape)


@lru_cache(256)
def _state_shapes(layers: int, batch: int, width: int, batched: bool) -> tuple[tuple[int, ...], ...]:
    """The shapes that mean a state: (L,B,·); (B,·) and (·) of one layer; (L,·) of one row. `_NEVER`: not allowed."""
    return (
        (layers, batch, width),
        (batch, width) if layers == 1 else _NEVER,
        (width,) if layers == 1 and batch == 1 else _NEVER,
        _NEVER if batched else (layers, width),
    )


def with_session(request: Request, fields: Document) -> Document:
    """The fields of a request, with the session that a header may name. Raises InvalidRequest if both do, apart."""
    header = request.header(b"x-session-id")
    if not header:
        return fields
    named = fields.get("session", header)
    if not isinstance(named, str) or named != header:  # an array is compared number by number
        raise wrong("session is not the one of X-Session-Id; name one", "session")
    return {**fields, "session": header}


def session_id(fields: Document) -> str:
    """The session that a request names. Raises InvalidRequest."""
    session = fields.get("session")
    if not isinstance(session, str):
        raise wrong("session is no string; expected the id that POST /cell/sessions gave", "session")
    return session


def refuse_another_model(on: ModelVersion, model: str | None, version: str | None) -> None:
    """Raise InvalidRequest if a request for a session names a model or version that is not the session's."""
    for name, asked, is_on in (("model", model, on.name), ("version", version, on.version)):
        if asked is not None and asked != is_on:
            raise wrong(f"{name} is {asked}; this session runs on {is_on}", name)
