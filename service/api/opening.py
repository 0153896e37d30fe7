"""What opens a stream, over HTTP or a WebSocket: query parameters, a header and the first message, as one request."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from service.api.conversation import Conversation, decode_line
from service.api.exchange import Exchange
from service.api.places import at, at_line
from service.api.requests import StreamRequest, parse
from service.api.session_step import with_session
from service.api.shapes import Limits, Target, wrong
from service.api.stepping import initial, step_returns, steppable
from service.errors import ServiceError
from service.serving.inference import Inference
from service.sessions.stepper import StatelessStepper, Stepper
from service.wire.arrays import MAX_FIELDS

SessionOpener = Callable[[Mapping[str, Any], Exchange], Awaitable[Stepper]]
"""Gives the stepper of the session that a stream's fields, valid ones, name. Raises what the client is to be told."""


@dataclass(frozen=True, slots=True)
class Opener:
    """Makes a conversation of what a client opens it with; `sessions` is there if the service keeps any."""

    inference: Inference
    limits: Limits
    sessions: SessionOpener | None = None

    async def open(self, exchange: Exchange, message: Mapping[str, Any]) -> Conversation:
        """The conversation that query, header and first message mean together.

        Raises InvalidRequest, NotSteppable, what `Registry.resolve` and the sessions raise.
        """
        fields = with_session(exchange, {**_from_query(exchange.scope["query_string"]), **message})
        if "session" in fields:
            return await self._session(fields, exchange)
        return await self._stateless(fields, exchange)

    async def _stateless(self, fields: Mapping[str, Any], exchange: Exchange) -> Conversation:
        model = steppable(self.inference.registry.resolve_fields(fields))
        exchange.model, exchange.version = model.name, model.version
        spec, target = model.spec, Target(model.name, model.spec, self.limits)
        request = parse(StreamRequest, fields, target)
        returns = step_returns(request.returns, target, stateful=True)
        h = initial(request.h, "h", (spec.num_layers, 1, spec.state_size), "P", batched=False)
        c = None
        if spec.has_cell_state:
            c = initial(request.c, "c", (spec.num_layers, 1, spec.hidden_size), "H", batched=False)
        elif request.c is not None:
            raise wrong(f'c is for LSTMs; model "{target.name}" is of kind {spec.kind}', "c")
        stepper = StatelessStepper(
            model,
            self.inference,
            await self.inference.registry.engine(model),
            h,
            c,
            predictions="predictions" in returns,
            with_state=bool(returns & {"h", "c"}),
            book=exchange.book,
            done=0 if request.step is None else request.step - 1,
        )
        return _conversation(stepper, target, exchange, request, returns)

    async def _session(self, fields: Mapping[str, Any], exchange: Exchange) -> Conversation:
        if self.sessions is None:
            raise wrong("session: this service keeps no sessions", "session")
        request = parse(StreamRequest, fields, None)
        for name in ("h", "c"):
            if name in fields:
                raise wrong(f"{name} is what the session keeps; open another one from a state of yours", name)
        stepper = await self.sessions(fields, exchange)
        model = stepper.model
        exchange.model, exchange.version = model.name, model.version
        target = Target(model.name, model.spec, self.limits)
        returns = step_returns(request.returns, target, stateful=True)
        return _conversation(stepper, target, exchange, request, returns)


def _conversation(
    stepper: Stepper, target: Target, exchange: Exchange, request: StreamRequest, returns: frozenset[str]
) -> Conversation:
    return Conversation(
        stepper,
        target,
        exchange,
        returns,
        binary=_only(request.returns),
        finite_text=request.non_finite == "error",
        patience=exchange.timeout(),
        number=request.step,
    )


async def opening_message(line: bytes, place: int) -> Mapping[str, Any] | None:
    """The first line's fields if it opens the stream; None if it is a step already. Raises what is wrong with it."""
    if line.startswith(b"["):
        return None
    try:
        first = await decode_line(line)
    except ServiceError as error:
        raise at(at_line(place), error) from None
    return first if isinstance(first, Mapping) and "inputs" not in first else None


def _only(returns: Sequence[str] | None) -> str | None:
    """The array that a binary answer holds: the one that was asked for, outputs if nothing was said."""
    if returns is None:
        return "outputs"
    return returns[0] if len(set(returns)) == 1 else None


def _from_query(query: bytes) -> dict[str, Any]:
    """Query parameters as fields; `returns` is comma-separated there. Raises InvalidRequest."""
    fields: dict[str, Any] = {}
    try:
        pairs = parse_qsl(query.decode("latin-1"), keep_blank_values=True, max_num_fields=MAX_FIELDS)
    except ValueError:
        raise wrong(f"the query has more than {MAX_FIELDS} parameters", "query") from None
    for name, value in pairs:
        if name in fields:
            raise wrong(f"{name:.80} stands twice in the query", name[:80])
        fields[name] = value
    if "returns" in fields:
        fields["returns"] = [part for part in fields["returns"].split(",") if part]
    if fields.get("step", "").isascii() and fields.get("step", "").isdigit() and len(fields["step"]) < 19:
        fields["step"] = int(fields["step"])
    return fields
