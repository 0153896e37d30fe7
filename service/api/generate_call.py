"""A request to /rnn/generate checked against its model, and what it gets back."""

from collections import Counter
from collections.abc import Iterator
from hashlib import blake2b
from itertools import chain
from secrets import randbits
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.api.requests import GenerateRequest
from service.api.shapes import (
    SEQUENCE,
    SEQUENCES,
    Limits,
    initial_state,
    invalid,
    returned,
    sequences,
    steps,
)
from service.api.step import MAX_KEPT_BYTES
from service.api.stepping import steppable
from service.engine.interface import Floats, Rows
from service.errors import NonFiniteOutput
from service.serving.generation import Generation
from service.serving.registry import ModelVersion
from service.serving.sampling import Sampling
from service.wire import json
from service.wire.arrays import RaggedRows, finite

OF_TOKENS = ("temperature", "top_k", "top_p", "seed", "stop")
OF_VECTORS = ("feedback", "future")
PIECE_BYTES = 8 * 1024  # of short lines: about a millisecond's work


class GenerateCall:
    """A valid request as a context, whose state the generation goes on from, and the reply in its form."""

    def __init__(self, asked: GenerateRequest, model: ModelVersion, limits: Limits, pads: bool) -> None:
        """Check what was asked, and make room; pads is as for forwards. Raises InvalidRequest, NotSteppable."""
        spec = steppable(model).spec
        self.asked, self.model = asked, model
        self._pads, self._strict = pads, not pads and asked.non_finite == "error"
        self.before = self._sent = 0  # steps of the session before these; lines that were sent
        takes_ids = _refuse_unable(asked, model)
        limits.check_inputs(asked.inputs)
        default = ("tokens" if takes_ids else "predictions", "h_n", "c_n")
        returns = returned(asked.returns, default, model, by_step=True)
        if "tokens" in returns and not takes_ids:
            raise invalid(f'returns names tokens, and model "{model.name}" takes vectors', "returns")
        if asked.session:
            inputs, context = self._step_of_session(asked, model)
        else:
            inputs, context = self._context(asked, model)
        batch = len(inputs)
        widths = {"tokens": int(takes_ids), "predictions": spec.step_predictions, "outputs": spec.output_size}
        width = sum(width for name, width in widths.items() if name in returns | {"tokens"})
        self.values = batch * (spec.state_values + asked.steps * width)
        if self.values > limits.reply_values:
            raise invalid(
                f"states and reply would hold {self.values} numbers; the limit is {limits.reply_values}: ask for fewer "
                "steps, or for less in returns",
                "steps",
            )
        if asked.session and asked.steps > (most := MAX_KEPT_BYTES // (4 * width or 4)):
            raise invalid(f"steps is {asked.steps}; a session of this model takes {most} in one request", "steps")
        self.context = context
        firsts = context.lengths + (asked.step or 1)
        self.generation = Generation(
            spec,
            inputs,
            asked.steps,
            returns,
            _sampling(asked, model, firsts) if takes_ids else None,
            frozenset(asked.stop or ()),
            None if takes_ids else _feedback(asked, model),
            None if takes_ids else self._future(batch),
        )

    def digest(self) -> bytes:
        """Of all fields that a retry must have in common with the first try."""
        asked, generation = self.asked, self.generation
        names = ("steps", *OF_TOKENS, "feedback")
        text = repr([getattr(asked, name) for name in names] + sorted(generation.returns))
        future = b"" if generation.future is None else generation.future.tobytes()
        return blake2b(text.encode() + generation.inputs.tobytes() + future, digest_size=16).digest()

    def check(self) -> None:
        """Raise NonFiniteOutput if something is not finite that JSON is to carry, and was not sent yet."""
        if place := self.not_finite():
            step, row, name = place
            raise NonFiniteOutput(
                f"{name} of row {row} is not finite at step {self.before + step + 1}, and JSON has no NaN or infinity; "
                'ask for safetensors, or send "non_finite": "null"'
            )

    def reply(self) -> dict[str, Any]:
        """The fields of a whole reply."""
        generation, counts = self.generation, self.generation.counts
        ragged, longest = not self._pads and self.asked.batch_first, int(counts.max())
        fields: dict[str, Any] = {}
        ended = np.arange(longest) >= counts[:, None]
        for name, values in self._results().items():
            ran = values[:, :longest]
            if ragged and ended.any():
                fields[name] = RaggedRows(ran[~ended], np.append(0, counts.cumsum()))
                continue
            ran[ended] = 0
            if not self.batched:
                ran = ran[0]
            elif not self.asked.batch_first:
                ran = ran.swapaxes(0, 1)
            fields[name] = np.ascontiguousarray(ran)
        if self.batched and generation.sampling and not ragged:
            fields["lengths"] = counts
        if self.asked.session:
            fields["step"] = self.before + generation.step
        return fields | self._states() | self._run_by()

    def lines(self, place: tuple[int, int, str] | None) -> Iterator[bytes]:
        """The next lines of steps that have run, up to what is not finite, in pieces that are printed quickly."""
        pieces, size = list[bytes](), 0
        for step in range(self._sent, place[0] if place else self.generation.step):
            for piece in chain(json.slices(self._line(step)), (b"\n",)):
                pieces.append(piece)
                size += len(piece)
                if size > PIECE_BYTES:
                    yield b"".join(pieces)
                    pieces, size = [], 0
            self._sent = step + 1
        if pieces:
            yield b"".join(pieces)

    def _line(self, step: int) -> dict[str, Any]:
        """Of one step: values of rows that have ended are null. The first says what runs, the last has the states."""
        generation, counts = self.generation, self.generation.counts.tolist()
        fields: dict[str, Any] = {"step": self.before + step + 1}
        for name, values in self._results().items():
            rows = [None if 0 < count <= step else row[step] for row, count in zip(values, counts, strict=True)]
            fields[name] = rows if self.batched else rows[0]
        ends = not generation.live and step + 1 == generation.step
        return fields | ({} if step else self._run_by()) | (self._states() if ends else {})

    def not_finite(self) -> tuple[int, int, str] | None:
        """Step, row and name of the first value that has not been sent and is not finite, if JSON is to carry it."""
        if not self._strict:
            return None
        begin, end = self._sent, self.generation.step
        parts = [(begin, name, values[:, begin:end]) for name, values in self._results().items()]
        if not self.generation.live:  # states are sent with the last step
            parts += [(end - 1, name, state.swapaxes(0, 1)[:, None]) for name, state in self.generation.states.items()]
        found = []
        for first, name, values in parts:
            if not finite(values):
                bad = ~np.isfinite(values.reshape(*values.shape[:2], -1)).all(axis=-1)
                step = int(bad.any(axis=0).argmax())
                found.append((first + step, int(bad[:, step].argmax()), name))
        return min(found, default=None)

    def _states(self) -> dict[str, Any]:
        states = self.generation.states.items()
        return {name: np.ascontiguousarray(state if self.batched else state[:, 0]) for name, state in states}

    def _run_by(self) -> dict[str, Any]:
        sampling, seed = self.generation.sampling, self.asked.seed
        fields: dict[str, Any] = {"model": self.model.name, "version": self.model.version}
        if sampling and sampling.temperature:
            fields["seed"] = int(sampling.seeds[0]) if seed is None else seed
        return fields

    def _results(self) -> dict[str, NDArray[Any]]:
        """What is asked for of each step, (B,steps,·)."""
        generation = self.generation
        return {name: values for name, values in generation.results.items() if name in generation.returns}

    def _context(self, asked: GenerateRequest, model: ModelVersion) -> tuple[Floats, Rows]:
        """The last step of each row (B,I), and the rows before it."""
        given = sequences(asked.inputs, asked.lengths, model, batch_first=asked.batch_first)
        self.batched = given.batched
        forms, batch = (SEQUENCES if given.batched else SEQUENCE), len(given.lengths)
        h, c = initial_state(asked.h0, asked.c0, model, batch, forms, ("h0", "c0"))
        return given.steps[given.starts + given.lengths - 1], Rows(given.steps, given.starts, given.lengths - 1, h, c)

    def _step_of_session(self, asked: GenerateRequest, model: ModelVersion) -> tuple[Floats, Rows]:
        """As `_context`: one step, and none before it."""
        for name in ("h0", "c0", "lengths"):
            if getattr(asked, name) is not None:
                raise invalid(f"{name} is for requests without a session, which has its own state", name)
        self.batched = False
        inputs, _ = steps(asked.inputs, model)
        if len(inputs) > 1:
            raise invalid(
                f"inputs has {len(inputs)} steps; with a session it is one: send others to /cell/step", "inputs"
            )
        none = np.zeros(1, np.int64)
        return inputs, Rows(inputs, none, none, np.empty((0, 1, 0), np.float32))

    def _future(self, batch: int) -> Floats | None:
        """As (B,steps-1,I)."""
        asked, width = self.asked, self.model.spec.in_features
        if asked.future is None or (asked.steps == 1 and not asked.future.size):
            return None
        shape: tuple[int, ...] = (asked.steps - 1, width)
        if self.batched:
            shape = (batch, *shape) if asked.batch_first else (shape[0], batch, width)
        came = getattr(asked.future, "shape", "unequal lengths")
        if came != shape:
            raise invalid(
                f"future has {came}; expected {shape}: inputs of the {shape[-2]} steps after the first", "future"
            )
        future: Floats = np.asarray(asked.future, np.float32)
        if not self.batched:
            return future[None]
        return future if asked.batch_first else future.swapaxes(0, 1)


def _refuse_unable(asked: GenerateRequest, model: ModelVersion) -> bool:
    """Raise InvalidRequest if the model cannot feed itself, or was asked for what it has not; says if it takes ids."""
    spec, name = model.spec, f'model "{model.name}"'
    ids = spec.num_embeddings
    if not spec.head:
        raise invalid(f"{name} has no head: it predicts nothing that could be its next input", "model")
    if not spec.step_predictions:
        raise invalid(f"{name} predicts from the {spec.pooling} of whole sequences, and not at each step", "model")
    for field in OF_TOKENS if ids is None else OF_VECTORS:
        if getattr(asked, field) is not None:
            takes = "vectors" if ids is None else "token ids"
            raise invalid(f"{field} is not for {name}, which takes {takes}", field)
    if ids is not None and spec.out_features != ids:
        raise invalid(f"{name} takes {ids} token ids and predicts {spec.out_features} values: it cannot go on", "model")
    if ids is None and spec.out_features != spec.in_features and asked.feedback is None:
        raise invalid(
            f"{name} takes {spec.in_features} values and predicts {spec.out_features}: feedback must say which input "
            "each prediction replaces",
            "feedback",
        )
    return ids is not None


def _sampling(asked: GenerateRequest, model: ModelVersion, firsts: NDArray[np.int64]) -> Sampling:
    """How rows draw whose contexts end with the steps of these numbers (B,)."""
    spec, batch = model.spec, len(firsts)
    for index, token in enumerate(asked.stop or ()):
        if not 0 <= token < (spec.num_embeddings or 0):
            raise invalid(
                f"stop[{index}] is {token}; token ids are 0 to {(spec.num_embeddings or 0) - 1}", "stop", index
            )
    seed = randbits(48) if asked.seed is None else asked.seed
    if isinstance(seed, list) and len(seed) != batch:
        raise invalid(f"seed has {len(seed)} numbers; expected one, or {batch}, one a row", "seed")
    if not all(-(2**63) <= one < 2**64 for one in (seed if isinstance(seed, list) else [seed])):
        raise invalid("seed has more than 64 bits", "seed")
    seeds = seed if isinstance(seed, list) else [seed + row for row in range(batch)]
    last = [layer.type for layer in spec.head if layer.type != "dropout"][-1:]
    return Sampling(
        np.array([one % 2**64 for one in seeds], np.uint64),
        firsts,
        1.0 if asked.temperature is None else asked.temperature,
        asked.top_k,
        1.0 if asked.top_p is None else asked.top_p,
        normalized=last == ["softmax"],
    )


def _feedback(asked: GenerateRequest, model: ModelVersion) -> tuple[list[int], list[int]] | None:
    """As `Generation` has it; checks that with `future` it makes every input."""
    spec = model.spec
    if asked.feedback is None:
        return None
    if len(asked.feedback) != spec.out_features:
        raise invalid(
            f'feedback has {len(asked.feedback)} entries; model "{model.name}" makes {spec.out_features} predictions',
            "feedback",
        )
    pairs = [(index, place) for index, place in enumerate(asked.feedback) if place is not None]
    places = Counter(place for _, place in pairs)
    for index, place in pairs:
        if not 0 <= place < spec.in_features:
            raise invalid(f"feedback[{index}] is {place}; inputs are 0 to {spec.in_features - 1}", "feedback", index)
        if places[place] > 1:
            raise invalid(f"feedback[{index}] is {place}, which stands there twice", "feedback", index)
    missing = sorted(set(range(spec.in_features)) - places.keys())
    if missing and asked.future is None and asked.steps > 1:
        raise invalid(f"input {missing[0]} of later steps is neither in feedback nor in future", "future")
    return [index for index, _ in pairs], [place for _, place in pairs]
