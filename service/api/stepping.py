"""What every way of stepping shares: which models step, and which session a request means."""

from collections.abc import Collection

from service.api.request import Request
from service.api.shapes import invalid
from service.errors import NotSteppable
from service.serving.registry import ModelVersion
from service.wire.arrays import Document

STREAM_RETURNS = ("outputs", "predictions")  # what is sent back where the service keeps the state


def steppable(model: ModelVersion) -> ModelVersion:
    """The model, if it has a next step. Raises NotSteppable."""
    if model.spec.bidirectional:
        raise NotSteppable(
            f'model "{model.name}" is bidirectional: its backward direction starts at the end of the sequence, so '
            "there is no single next step; send whole sequences to /rnn/forward"
        )
    return model


def wants_state(returns: Collection[str]) -> bool:
    """Whether the state after a step is among what is sent back."""
    return "h" in returns or "c" in returns


def with_session(request: Request, fields: Document) -> Document:
    """The fields of a request, with the session that a header may name. Raises InvalidRequest."""
    header = request.header(b"x-session-id")
    session = fields.get("session", header)
    if not isinstance(session, str):
        raise invalid("session is no string; expected the id that POST /cell/sessions gave", "session")
    if header and session != header:
        raise invalid("session is not the one of X-Session-Id; name one", "session")
    return {**fields, "session": header} if header else fields


def refuse_another_model(on: ModelVersion, model: str | None, version: str | None) -> None:
    """Raise InvalidRequest if a request for a session names a model or version that is not the session's."""
    for name, asked, is_on in (("model", model, on.name), ("version", version, on.version)):
        if asked is not None and asked != is_on:
            raise invalid(f"{name} is {asked}; this session runs on {is_on}", name)
