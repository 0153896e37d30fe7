"""The weights of a model folder as PyTorch's own modules: what the naive endpoint and every rival serve.

Imported in environments that have torch, safetensors and little else.
"""

import json
from collections.abc import Iterable, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

Request = Mapping[str, Any]
Reply = dict[str, Any]


class Modules:
    """One folder's weights as the two modules that use them."""

    def __init__(self, folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        weights = load_file(folder / "1" / "model.safetensors")
        sizes = config["input_size"], config["hidden_size"]
        self.name = folder.name
        self.rnn = nn.RNN(*sizes, batch_first=True).eval()
        self.rnn.load_state_dict(weights)
        self.cell = nn.RNNCell(*sizes).eval()
        self.cell.load_state_dict({name.removesuffix("_l0"): array for name, array in weights.items()})


class Models:
    """Every folder of a model repository, loaded at once."""

    def __init__(self, directory: Path) -> None:
        self._modules = {folder.name: Modules(folder) for folder in directory.iterdir()}

    def __getitem__(self, name: str) -> Modules:
        return self._modules[name]

    def answer(self, request: Request) -> Reply:
        """A request alone; its arrays are nested lists or tensors, those of the reply nested lists."""
        return self.answer_together([request])[0]

    @torch.inference_mode()
    def answer_together(self, requests: Iterable[Request]) -> list[Reply]:
        """Requests as one batch, as far as neighbours have the same model and number of steps."""
        replies = []
        for (name, _), group in groupby(map(_with_tensors, requests), key=_batch_key):
            members = list(group)
            run = self._forward if "h0" in members[0] else self._step
            replies += run(self._modules[name], members)
        return replies

    def _forward(self, modules: Modules, requests: list[Request]) -> list[Reply]:
        rows = [len(request["inputs"]) for request in requests]
        outputs, h_n = modules.rnn(_joined(requests, "inputs", 0), _joined(requests, "h0", 1))
        pairs = zip(outputs.split(rows), h_n.split(rows, dim=1), strict=True)
        return [{"model": modules.name, "outputs": out.tolist(), "h_n": h.tolist()} for out, h in pairs]

    def _step(self, modules: Modules, requests: list[Request]) -> list[Reply]:
        rows = [len(request["inputs"]) for request in requests]
        states = modules.cell(_joined(requests, "inputs", 0), _joined(requests, "h", 0)).split(rows)
        return [{"model": modules.name, "outputs": h, "h": h} for h in (state.tolist() for state in states)]


def _with_tensors(request: Request) -> Request:
    return {name: value if name == "model" else torch.as_tensor(value) for name, value in request.items()}


def _batch_key(request: Request) -> tuple[str, tuple[int, ...]]:
    return request["model"], request["inputs"].shape[1:]


def _joined(requests: list[Request], name: str, dim: int) -> Tensor:
    arrays = [request[name] for request in requests]
    return torch.cat(arrays, dim=dim) if len(arrays) > 1 else arrays[0]
