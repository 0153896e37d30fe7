"""A stream without a model: its state is the sum of its inputs, so every answer is known."""

import asyncio
from types import SimpleNamespace

import numpy as np

from service.api.readiness import Draining
from service.api.request import Request
from service.api.streams.step_stream import IdleTimeout, StepStream
from service.errors import FieldError, InvalidRequest
from service.sessions.stepper import NonFinite, Steps
from service.spec import ModelSpec

SPEC = ModelSpec("rnn", 2, 2)


class Sums:
    """A stepper that answers with the sums so far; steps up to `kept`, and again those done, are answered as new."""

    def __init__(self, kept=0):
        self.model = SimpleNamespace(spec=SPEC, name="sums", version="1")
        self.done = kept
        self.total = np.zeros(2, np.float32)
        self.asked = []

    async def run(self, inputs, step, deadline, *, refuse_non_finite):
        self.asked.append((len(inputs), step))
        first = self.done + 1 if step is None else step
        if first > self.done + 1:
            raise InvalidRequest([FieldError(("step",), f"expects {self.done + 1}")])
        with np.errstate(over="ignore"):
            outputs = self.total + np.cumsum(inputs, axis=0, dtype=np.float32)
        if refuse_non_finite and not np.isfinite(outputs).all():
            raise NonFinite(int(np.argmin(np.isfinite(outputs).all(axis=1))))
        replayed = max(0, min(len(inputs), self.done + 1 - first))
        self.done = max(self.done, first + len(inputs) - 1)
        self.total = outputs[-1]
        parts = [(first, outputs[:replayed]), (first + replayed, outputs[replayed:])]
        return [Steps(number, part, None, part[None, -1:], None) for number, part in parts if len(part)]


def request(**headers):
    named = {name.replace("_", "-").encode(): value.encode() for name, value in headers.items()}
    return Request("POST", "/cell/step", b"", named, "peer", "r1")


def stream(stepper=None, *, number=None, returns=("outputs",), refuse_non_finite=True, asked_by=None):
    binary = returns[0] if len(returns) == 1 else None
    arrays = frozenset(returns)
    asked_by = asked_by or request()
    return StepStream(stepper or Sums(), asked_by, arrays, binary, refuse_non_finite, None, number)


def idle(seconds=20.0, draining=None):
    return IdleTimeout(draining or Draining(), seconds)


class Opens:
    """An Opener whose streams are `Sums`, with the given options; a first line with `model` opens the stream."""

    def __init__(self, **options):
        self.options = options

    async def open(self, asked_by, message):
        return stream(asked_by=asked_by, **self.options)

    async def open_by_line(self, asked_by, line, place):
        return await self.open(asked_by, {}), b"model" in line


class Receives:
    """ASGI's receive: messages in order, and then nothing for ever."""

    def __init__(self, *messages):
        self.messages = list(messages)

    async def __call__(self):
        if not self.messages:
            await asyncio.Event().wait()
        return self.messages.pop(0)
