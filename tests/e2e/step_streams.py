"""A client's stream of steps, in each of its formats."""

import json
from types import TracebackType

import numpy as np

from .raw import Wire, chunk, stream_head
from .running import Service
from .sockets import BINARY, CLOSE, PING, TEXT, frame, received, upgraded

KINDS = ("ndjson", "text", "binary")


class Refused(Exception):
    """The service ended the stream: the problem that it gave, and the WebSocket's close code."""

    def __init__(self, problem: dict) -> None:
        super().__init__(problem)
        self.problem = problem
        self.code = 0


class StepStream:
    """A stream of `outputs`; `query` names the model or the session. Reading raises Refused, or OSError as `Wire` does.

    `step` numbers the first step; binary answers carry no numbers and are counted from it.
    """

    def __init__(self, service: Service, kind: str, query: str, *, step: int | None = None, **options) -> None:
        self.kind = kind
        self.wire = Wire(service, **options)
        self.next = step or 1
        self._begun = False
        self._refusal: Refused | None = None
        query = f"?{query}&returns=outputs" + (f"&step={step}" if step else "")
        try:
            if kind == "ndjson":
                self.wire.send(stream_head(f"/cell/step{query}"))
            else:
                upgraded(self.wire, query)
        except BaseException:
            self.wire.close()
            raise

    def __enter__(self) -> "StepStream":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.wire.close()

    def send(self, inputs: np.ndarray, first: int | None = None) -> None:
        """Send steps (k,I) in one piece; first numbers them, line by line."""
        if self.kind == "binary":
            self.wire.send(frame(BINARY, inputs.astype("<f4").tobytes()))
            return
        lines = [json.dumps(row.tolist()) for row in inputs]
        if first is not None:
            lines = [f'{{"step":{step},"inputs":{line}}}' for step, line in enumerate(lines, first)]
        data = "".join(f"{line}\n" for line in lines).encode()
        self.wire.send(chunk(data) if self.kind == "ndjson" else frame(TEXT, data))

    def receive(self, width: int) -> dict[int, list[float]]:
        """The next piece of answers: outputs of `width` values by the number of the step."""
        if self._refusal is not None:
            raise self._refusal
        if self.kind == "ndjson":
            data = self._chunk()
        else:
            while (message := received(self.wire))[0] == PING:
                pass
            if message[0] == CLOSE:
                raise AssertionError("closed without an error")
            data = message[1]
            if message[0] == BINARY:
                outputs = np.frombuffer(data, "<f4").reshape(-1, width)
                begin, self.next = self.next, self.next + len(outputs)
                return dict(enumerate(outputs.tolist(), begin))
        answers = [json.loads(line) for line in data.splitlines()]
        if answers and "error" in answers[-1]:
            self._refusal = Refused(answers.pop()["error"])
            if self.kind != "ndjson":
                self._refusal.code = int.from_bytes(received(self.wire)[1][:2], "big")
            if not answers:
                raise self._refusal
        return {answer["step"]: answer["outputs"] for answer in answers}

    def receive_steps(self, count: int, width: int) -> dict[int, list[float]]:
        """At least so many answers."""
        answers: dict[int, list[float]] = {}
        while len(answers) < count:
            answers |= self.receive(width)
        return answers

    def _chunk(self) -> bytes:
        if not self._begun:
            status, headers = self.wire.status_and_headers()
            if status != 200:
                raise Refused(json.loads(self.wire.exactly(int(headers["content-length"]))))
            self._begun = True
        data = self.wire.chunk()
        if not data:
            raise ConnectionError("the stream has ended")
        return data
