"""The weights of a model repository as PyTorch's own modules: what the naive endpoint and every rival serve.

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

MAX_BATCH_SIZE = 16
BATCH_WAIT_SECONDS = 0.002


class Modules:
    """One folder's weights as the two modules that use them."""

    def __init__(self, folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        weights = load_file(folder / "1" / "model.safetensors")
        sizes = config["input_size"], config["hidden_size"]
        self.rnn = nn.RNN(*sizes, batch_first=True).eval()
        self.rnn.load_state_dict(weights)
        self.cell = nn.RNNCell(*sizes).eval()
        self.cell.load_state_dict({name.removesuffix("_l0"): array for name, array in weights.items()})


class Models:
    """Every folder of a model repository; arrays of requests are nested lists or tensors, of replies nested lists."""

    def __init__(self, directory: Path) -> None:
        self._modules = {folder.name: Modules(folder) for folder in directory.iterdir()}

    def answer(self, request: Request) -> Reply:
        """A request alone."""
        return self.answer_together([request])[0]

    @torch.inference_mode()
    def answer_together(self, requests: Iterable[Request]) -> list[Reply]:
        """Requests as one batch, as far as neighbours have the same model and number of steps."""
        tensors = [{k: v if k == "model" else torch.as_tensor(v) for k, v in one.items()} for one in requests]
        groups = groupby(tensors, key=lambda one: (one["model"], one["inputs"].shape[1:]))
        return [reply for _, group in groups for reply in self._run(list(group))]

    def _run(self, requests: list[Request]) -> Iterable[Reply]:
        model, rows = requests[0]["model"], [len(request["inputs"]) for request in requests]
        modules, inputs = self._modules[model], torch.cat([request["inputs"] for request in requests])
        if "h" in requests[0]:
            states = modules.cell(inputs, torch.cat([request["h"] for request in requests])).split(rows)
            return [{"model": model, "outputs": h, "h": h} for h in map(Tensor.tolist, states)]
        outputs, h_n = modules.rnn(inputs, torch.cat([request["h0"] for request in requests], dim=1))
        pairs = zip(outputs.split(rows), h_n.split(rows, dim=1), strict=True)
        return [{"model": model, "outputs": out.tolist(), "h_n": h.tolist()} for out, h in pairs]
