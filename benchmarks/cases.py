"""The cases: seeded weights, the bodies that every server gets, and the answers that it must give.

Weights are PyTorch's default initialisation, inputs and states standard normal float32, answers `torch.nn.RNN` in
float64 on those same float32 values.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import safetensors.numpy
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from benchmarks import v2

Arrays = dict[str, NDArray[Any]]

SEED = 20_240_117
TOLERANCE = 1e-5
JSON = "application/json"
OCTETS = "application/octet-stream"
CONTENT_TYPES = {"json": JSON, "safetensors": "application/vnd.safetensors", "v2 JSON": JSON, "v2 binary": OCTETS}
HEADER_LENGTH = "Inference-Header-Content-Length"


@dataclass(frozen=True, slots=True)
class Case:
    """One size of request: B sequences of T steps of I values, hidden states of H; `clients` send it in a closed loop.

    `returns`: the only reply field that is asked for; None asks for the default fields.
    """

    name: str
    batch: int
    steps: int
    input_size: int
    hidden_size: int
    clients: int
    path: str = "/rnn/forward"
    returns: str | None = None

    @property
    def model(self) -> str:
        """Cases of equal sizes share a model."""
        return f"rnn-{self.input_size}-{self.hidden_size}"


STEP = Case("step", 1, 1, 16, 32, clients=16, path="/cell/step")
ONE_CLIENT = Case("step, one client", 1, 1, 16, 32, clients=1, path="/cell/step")
CROWD = Case("step, 64 clients", 1, 1, 16, 32, clients=64, path="/cell/step")
IN_SESSION = Case("step of a session", 1, 1, 16, 32, clients=64, path="/cell/step")
SMALL = Case("small", 1, 32, 16, 32, clients=16)
BATCH = Case("batch", 1, 64, 128, 256, clients=64)
BATCH_STATES = Case("batch, h_n alone", 1, 64, 128, 256, clients=64, returns="h_n")
MEDIUM = Case("medium", 8, 64, 32, 64, clients=8)
LARGE = Case("large", 8, 256, 128, 256, clients=4)
# A number takes about 11 bytes of JSON: 60 MiB of inputs, and 60 MiB of outputs.
HUGE_BODY = Case("60 MiB body", 8, 42_500, 16, 32, clients=1, returns="h_n")
HUGE_REPLY = Case("60 MiB reply", 8, 21_000, 16, 32, clients=1, returns="outputs")
CASES = (STEP, ONE_CLIENT, CROWD, SMALL, BATCH, BATCH_STATES, MEDIUM, LARGE)


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """One HTTP POST of a case; header_bytes: of a body of the Open Inference Protocol, how much of it is JSON."""

    case: Case
    path: str
    content_type: str
    body: bytes
    header_bytes: int = 0

    @property
    def headers(self) -> dict[str, str]:
        length = {HEADER_LENGTH: str(self.header_bytes)} if self.header_bytes else {}
        return {"Content-Type": self.content_type, **length}

    def check(self, reply: bytes) -> None:
        """Raises ValueError if an array of the reply is not what it must be."""
        is_v2 = self.path.startswith("/v2/")
        if is_v2:
            arrays = v2.decode(reply)
        else:
            arrays = orjson.loads(reply) if self.content_type == JSON else safetensors.numpy.load(reply)
        for name, answer in values(self.case)[1].items():
            if is_v2 and name == "h_n":
                answer = answer.swapaxes(0, 1)  # noqa: PLW2901  # batch first
            check(f"{self.case.name}: {name}", np.asarray(arrays[name], dtype=np.float64), answer)


def check(what: str, found: NDArray[Any], answer: NDArray[Any]) -> None:
    """Raises ValueError if an array has another shape than the answer, or is off by more than 1e-5."""
    if found.shape != answer.shape:
        raise ValueError(f"{what} has shape {found.shape}; expected {answer.shape}")
    error = float(np.abs(found - answer).max())
    if not error <= TOLERANCE:
        raise ValueError(f"{what} is off by {error:.2g}; at most {TOLERANCE:g}")


def network(case: Case) -> torch.nn.RNN:
    """The case's model, the same weights every time."""
    torch.manual_seed(SEED)
    return torch.nn.RNN(case.input_size, case.hidden_size, batch_first=True)


@cache
def values(case: Case) -> tuple[Arrays, Arrays]:
    """What is sent (float32) and what must come back (float64).

    For a sequence inputs (B,T,I) and h0 (1,B,H) give outputs (B,T,H) and h_n (1,B,H); for a step inputs (B,I) and
    h (B,H) give outputs and h, both (B,H).
    """
    random = np.random.default_rng(SEED)
    inputs = random.standard_normal((case.batch, case.steps, case.input_size), dtype=np.float32)
    h0 = random.standard_normal((1, case.batch, case.hidden_size), dtype=np.float32)
    with torch.inference_mode():
        out, last = network(case).double()(torch.from_numpy(inputs).double(), torch.from_numpy(h0).double())
    outputs, h_n = out.numpy(), last.numpy()
    if case.path == "/cell/step":
        return {"inputs": inputs[:, 0], "h": h0[0]}, {"outputs": outputs[:, 0], "h": h_n[0]}
    answers = {"outputs": outputs, "h_n": h_n}
    return {"inputs": inputs, "h0": h0}, {case.returns: answers[case.returns]} if case.returns else answers


@cache
def call(case: Case, form: str, path: str) -> Call:
    """The request."""
    if form.startswith("v2"):
        arrays = values(case)[0]
        arrays = {"inputs": arrays["inputs"], "h0": arrays["h0"].swapaxes(0, 1)}
        body = v2.encode(arrays, binary=form == "v2 binary")
        return Call(case, f"/v2/models/{case.model}/infer", CONTENT_TYPES[form], *body)
    more = {"returns": [case.returns]} if case.returns else {}
    fields = {"model": case.model, **more, **values(case)[0]}
    if case is IN_SESSION:
        fields = {"session": "SESSION", "inputs": fields["inputs"][0]}
    return Call(case, path, CONTENT_TYPES[form], encode(fields, form))


def sequence_step(sequence: str = "SESSION", **more: bool) -> Call:
    """A step of a sequence of the Open Inference Protocol."""
    inputs = {"inputs": values(IN_SESSION)[0]["inputs"]}
    body = v2.encode(inputs, sequence_id=sequence, **more)
    return Call(IN_SESSION, f"/v2/models/{IN_SESSION.model}.step/infer", OCTETS, *body)


def encode(fields: Mapping[str, Any], form: str) -> bytes:
    """Fields and arrays in a wire format; in JSON each number is the shortest that is its float32."""
    if form == "json":
        return orjson.dumps(fields, option=orjson.OPT_SERIALIZE_NUMPY)
    arrays = {name: value for name, value in fields.items() if isinstance(value, np.ndarray)}
    rest = {name: value for name, value in fields.items() if name not in arrays}
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in rest.items()}
    return safetensors.numpy.save(arrays, texts)


def write(folder: Path) -> None:
    """The models of all cases, and the right answers to them, as large as the service's own replies."""
    (folder / "replies").mkdir()
    for case in CASES:
        answers = {name: np.ascontiguousarray(array, np.float32) for name, array in values(case)[1].items()}
        for form in ("json", "safetensors"):
            reply = encode({**answers, "model": case.model, "version": "1"}, form)
            (folder / "replies" / f"{case.name}.{form}").write_bytes(reply)
    for case in {case.model: case for case in CASES}.values():
        model = folder / "models" / case.model
        (model / "1").mkdir(parents=True)
        config = {"kind": "rnn", "input_size": case.input_size, "hidden_size": case.hidden_size}
        (model / "config.json").write_text(json.dumps(config))
        save_file(network(case).state_dict(), model / "1" / "model.safetensors")
