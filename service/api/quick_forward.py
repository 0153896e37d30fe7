"""POST /rnn/forward for small JSON bodies, answered in one go.

    body ──► form ──► memory for bodies of that form ──► rows ──► digits ──► reply

The first body of a form is read and checked as the handler of `forward` does it, and leaves its arrays behind: the next
brings nothing new but its numbers. Nothing here says what is wrong with a request. Whatever goes wrong, or takes long,
gets None, and the handler begins anew; a forward leaves no trace.
"""

from time import perf_counter
from typing import Any
from weakref import ref

import orjson

from service.api.answer import Answer
from service.api.forward import ForwardWork
from service.api.requests import ForwardRequest, parse
from service.api.shapes import Limits, Target
from service.engine.interface import Engine
from service.serving.inference import Inference
from service.serving.registry import ModelVersion
from service.wire import json
from service.wire.json_form import Form, Reader, form_of, read_numbers

MOST_BYTES = 32 * 1024
"""Bodies up to this are read here: what turns out to take long has then not been read in vain for long."""

MOST_VALUES = 2400
"""Numbers of results, up to which nothing else waits for much more than 200 µs, unless they are to be compressed: some
30 KB of digits, which the ordinary way compresses where it stands, too."""

MOST_FORMS = 256
"""Forms of bodies that are remembered; each has its arrays."""


class QuickForward:
    """Answers forwards at once, or not at all."""

    def __init__(self, inference: Inference, limits: Limits) -> None:
        self._inference = inference
        self._limits = limits
        self._reader = Reader()
        # None: bodies of this form are not for here.
        self._forms: dict[Form, Prepared | None] = {}

    def __call__(self, body: bytes, _: bytes | None) -> Answer | None:
        """The answer to a body."""
        try:
            return self._answer(body)
        except Exception:  # the handler will meet it again, and say it
            return None

    def _answer(self, body: bytes) -> Answer | None:
        begun = perf_counter()
        form = form_of(body)
        if form is None or form not in self._forms:
            return self._answer_new(body, form, begun)
        prepared = self._forms[form]
        if prepared is None:
            return None
        registry = self._inference.registry
        engine = registry.loaded(registry.resolve(*prepared.asked))
        if engine is None or engine is not prepared.engine():
            return self._answer_new(body, form, begun)
        prepared.read(self._reader.parse(body))
        return prepared.answer(engine, begun)

    def _answer_new(self, body: bytes, form: Form | None, begun: float) -> Answer | None:
        """The answer to a body of a new form, which is known from then on. Raises what is wrong with it."""
        document = json.decode(body)
        registry = self._inference.registry
        model = registry.resolve_fields(document)
        engine = registry.loaded(model)
        if engine is None:
            return None
        target = Target(model.name, model.spec, self._limits)
        work = ForwardWork.of(parse(ForwardRequest, document, target), target)
        prepared = None
        rows = work.rows
        results = sum(array.size for array in (rows.outputs, rows.predictions, rows.h, rows.c) if array is not None)
        if results <= MOST_VALUES and self._inference.runs_at_once(engine, rows):
            prepared = Prepared(work, model, engine)
        if form is not None and (prepared is None or prepared.reusable):
            if len(self._forms) >= MOST_FORMS:
                del self._forms[next(iter(self._forms))]
            self._forms[form] = prepared
        return None if prepared is None else prepared.answer(engine, begun)


class Prepared:
    """The memory of bodies of one form: read into, run, and printed."""

    def __init__(self, work: ForwardWork, model: ModelVersion, engine: Engine) -> None:
        request, rows = work.request, work.rows
        self.asked = request.model, request.version
        self.engine = ref(engine)  # one that is unloaded or replaced is not held
        self._work = work
        self._model, self._version = model.name, model.version
        self._count, self._steps = rows.lengths.size, rows.steps
        self._refuses = request.non_finite == "error"
        self._run = engine.prepared(rows)
        arrays = [("inputs", rows.inputs, request.inputs), ("h0", rows.h, request.h0), ("c0", rows.c, request.c0)]
        self._read = [
            (name, array.reshape(-1)) for name, array, came in arrays if array is not None and came is not None
        ]
        self._zero = [array for _, array, came in arrays if array is not None and came is None]
        names = [f'"{name}":%b' for name in work.reply(ragged=True)]
        names += [f'"model":"{model.name}"', f'"version":"{model.version}"']
        self._text = ("{" + ",".join(names) + "}").encode()

    @property
    def reusable(self) -> bool:
        """Whether other bodies of the form differ in nothing but what is read.

        lengths are numbers, too, and an empty list might be one with a number.
        """
        request = self._work.request
        return request.lengths is None and request.batch_first and request.returns != []

    def read(self, document: Any) -> None:
        """Take a parsed body's numbers. Raises as `read_numbers` does."""
        for name, array in self._read:
            read_numbers(document[name], array)
        for zero in self._zero:
            zero.fill(0)

    def answer(self, engine: Engine, begun: float) -> Answer | None:
        """Run, and print; None if a result that would be sent is not finite."""
        decoded = perf_counter()
        if self._run is None:
            engine.run([self._work.rows])
        else:
            self._run()
        computed = perf_counter()
        results = self._work.reply(ragged=True).values()
        printed = [orjson.dumps(result, option=orjson.OPT_SERIALIZE_NUMPY) for result in results]
        if self._refuses and any(b"n" in digits for digits in printed):  # of "null": NaN or infinity
            return None
        reply = self._text % tuple(printed)
        encoded = perf_counter()
        stages = {"decode": decoded - begun, "queue": 0.0, "compute": computed - decoded, "encode": encoded - computed}
        return Answer(reply, self._model, self._version, stages, self._count, self._steps)
