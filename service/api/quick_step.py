"""POST /cell/step in its commonest form, answered in one go: one row, and the service's defaults for everything else.

    body ──► fields ──► the engine's own memory ──► step ──► digits ──► reply

Where a session's store is shared, the reply waits for its commit.

Nothing here says what is wrong with a request. Whatever is not quite of that form, and whatever goes wrong before a
session is advanced, gets None, and the handlers of `step` and `session_step` begin anew, whose answers these are byte
for byte.
"""

from collections.abc import Iterator
from functools import partial
from struct import Struct
from time import perf_counter
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import orjson
from pydantic import ValidationError

from service.api.answer import Answer
from service.api.requests import QuickSessionStepRequest, QuickStepRequest
from service.api.shapes import Limits
from service.engine.interface import Engine, Floats, OneStep
from service.errors import ServiceError
from service.serving.inference import Inference
from service.serving.registry import ModelVersion
from service.sessions.next_step import NextStep
from service.sessions.replay import kept_single
from service.spec import ModelSpec

MOST_VALUES = 2048
"""Numbers in a request or its reply, up to which this is the quicker way."""

Shape = tuple[int, ...]


class QuickStep:
    """Answers steps at once, or not at all."""

    def __init__(self, inference: Inference, next_step: NextStep, limits: Limits) -> None:
        self._inference = inference
        self._next_step = next_step
        self._limits = limits
        # An engine that is unloaded or replaced takes its plan with it.
        self._plans: WeakKeyDictionary[Engine, Plan | None] = WeakKeyDictionary()

    def __call__(self, body: bytes, owner: bytes | None) -> Answer | None:
        """The answer to a body; owner is whose sessions it may use, None everybody's."""
        begun = perf_counter()
        try:
            fields = orjson.loads(body)
            if b"\\" in body or body.count(b'"') != 2 * _texts(fields):
                return None  # a name may stand twice: an error, of which the parser shows the last only
            if "session" in fields:
                return self._of_session(QuickSessionStepRequest.model_validate(fields), owner, begun)
            return self._stateless(QuickStepRequest.model_validate(fields), begun)
        except (orjson.JSONDecodeError, ValidationError, AttributeError, TypeError, OverflowError, ServiceError):
            return None

    def _stateless(self, request: QuickStepRequest, begun: float) -> Answer | None:
        registry = self._inference.registry
        model = registry.resolve(request.model, request.version)
        plan = self._plan(model, registry.loaded(model))
        if plan is None:
            return None
        x, shape = _flat(request.inputs)
        h, h_shape = (plan.no_h, None) if request.h is None else _flat(request.h)
        c, c_shape = (plan.no_c, None) if request.c is None else _flat(request.c)
        form = plan.forms.get((shape, h_shape, c_shape))
        if form is None:
            return None
        plan.pack(plan.memory, 0, *x, *h, *c)
        return _run(model, plan, form, (), begun)

    def _of_session(self, request: QuickSessionStepRequest, owner: bytes | None, begun: float) -> Answer | None:
        found = self._next_step.begin(request.session, owner, request.step)
        if found is None:
            return None
        record, model = found
        plan = self._plan(model, model.engine)
        x, shape = _flat(request.inputs)
        form = plan.session_forms.get(shape) if plan else None
        if plan is None or form is None:
            return None
        plan.pack_x(plan.memory, 0, *x)
        plan.state[:] = record.position.state
        answer = _run(model, plan, form, (record.position.step + 1,), begun)
        if answer is None:
            return None
        kept = kept_single(plan.x, plan.step.predictions)
        position = self._next_step.after(record, bytes(plan.state), kept)
        if self._next_step.waits:
            commit = partial(self._next_step.commit_in_turn, record, position, request.step, plan.x[None].copy())
            return answer._replace(commit=commit)
        return answer if self._next_step.commit(record, position) else None

    def _plan(self, model: ModelVersion, engine: Engine | None) -> "Plan | None":
        """How a loaded model is stepped; None if it is not loaded, or too large."""
        if engine is None:
            return None
        if engine not in self._plans:
            spec = model.spec
            values = spec.input_size + spec.num_layers * (spec.state_size + spec.has_cell_state * spec.hidden_size)
            values += spec.output_size + (spec.out_features or 0)
            fits = values <= min(MOST_VALUES, self._limits.input_values, self._limits.reply_values)
            step = self._inference.one_step(engine) if fits else None
            self._plans[engine] = None if step is None else Plan(model, step)
        return self._plans[engine]


def _run(model: ModelVersion, plan: "Plan", form: "Form", more: tuple[int, ...], begun: float) -> Answer | None:
    """Run the step that is in a plan's memory; None if a result that would be sent is not finite."""
    decoded = perf_counter()
    plan.step.run()
    computed = perf_counter()
    printed = [orjson.dumps(values, option=orjson.OPT_SERIALIZE_NUMPY) for values in form.views]
    if form.top_is_h:
        printed.insert(0, printed[0])
    reply = form.text % (*printed, *more)
    if b"null" in reply:  # that is how NaN and infinity are printed; it may be in a name, too
        return None
    encoded = perf_counter()
    stages = {"decode": decoded - begun, "queue": 0.0, "compute": computed - decoded, "encode": encoded - computed}
    return Answer(reply, model.name, model.version, stages)


class Form(NamedTuple):
    """How a reply is printed: a text with places for views' digits. top_is_h: the first view's stand there twice."""

    text: bytes
    views: tuple[Floats, ...]
    top_is_h: bool = False


class Plan:
    """The memory for steps of one model, and the forms of reply to every form of request."""

    def __init__(self, model: ModelVersion, step: OneStep) -> None:
        spec = model.spec
        width, state = spec.input_size, step.h.size + (0 if step.c is None else step.c.size)
        self.step = step
        self.memory = step.memory.data
        self.pack = Struct(f"={width + state}f").pack_into
        self.pack_x = Struct(f"={width}f").pack_into
        self.x = step.memory[:width]
        self.state = self.memory[width : width + state].cast("B")
        self.no_h = [0.0] * step.h.size
        self.no_c = [0.0] * (state - step.h.size)
        self.forms = dict(_forms(model, step))
        self.session_forms = {(width,): _session_form(step, ""), (1, width): _session_form(step, "[")}


def _forms(model: ModelVersion, step: OneStep) -> Iterator[tuple[tuple[Shape | None, ...], Form]]:
    """The form of reply by the shapes of inputs, h and c; None is what did not come."""
    spec = model.spec
    tail = b',"model":%b,"version":%b}' % (orjson.dumps(model.name), orjson.dumps(model.version))
    for batched, inputs in ((False, (spec.input_size,)), (True, (1, spec.input_size))):
        for h_came, h_shape in _state_shapes(spec, spec.state_size, batched=batched):
            cells = _state_shapes(spec, spec.hidden_size, batched=batched) if spec.has_cell_state else [(None, ())]
            for c_came, c_shape in cells:
                names, views = ["outputs", "h"], [step.h[-1, 0], step.h.reshape(h_shape)]
                brackets = [int(batched), 0]
                if spec.num_layers == 1:  # h is printed as outputs is, but for its brackets
                    views, brackets[1] = views[:1], len(h_shape) - 1
                if step.c is not None:
                    names, views, brackets = [*names, "c"], [*views, step.c.reshape(c_shape)], [*brackets, 0]
                if step.predictions is not None:
                    names, views = [*names, "predictions"], [*views, step.predictions]
                    brackets.append(int(batched))
                yield (
                    (inputs, h_came, c_came),
                    Form(_text(names, brackets) + tail, tuple(views), top_is_h=spec.num_layers == 1),
                )


def _state_shapes(spec: ModelSpec, width: int, *, batched: bool) -> list[tuple[Shape | None, Shape]]:
    """The shapes in which a state may come, None if it does not, and in which it then goes back."""
    layers = spec.num_layers
    allowed: set[Shape] = {(layers, 1, width)}
    if layers == 1:
        allowed |= {(1, width), (width,)}
    if not batched:
        allowed.add((layers, width))
    unsaid = (layers,) * (layers > 1) + (1,) * batched + (width,)
    return [(None, unsaid), *((shape, shape) for shape in allowed)]


def _session_form(step: OneStep, bracket: str) -> Form:
    names, views = ["outputs"], [step.h[-1, 0]]
    if step.predictions is not None:
        names, views = [*names, "predictions"], [*views, step.predictions]
    return Form(_text(names, [len(bracket)] * len(names)) + b',"step":%d}', tuple(views))


def _text(names: list[str], brackets: list[int]) -> bytes:
    fields = [f'"{name}":{"[" * depth}%b{"]" * depth}' for name, depth in zip(names, brackets, strict=True)]
    return ("{" + ",".join(fields)).encode()


def _flat(values: list[Any]) -> tuple[list[float], Shape]:
    """The numbers of nested lists, none of which is empty, and their shape. Raises TypeError if they are ragged."""
    shape: Shape = (len(values),)
    while type(values[0]) is list:
        shape += (len(values[0]),)
        if len(values) == 1:
            values = values[0]
        elif len(set(map(len, values))) == 1:
            values = [item for row in values for item in row]
        else:
            raise TypeError("ragged")
    return values, shape


def _texts(fields: dict[str, Any]) -> int:
    """Names and strings in a document; each has two quotes."""
    return len(fields) + sum(type(value) is str for value in fields.values())
