"""Train a recurrent forecaster on one series, and write it as a model folder.

Letters: W steps of a window, T time steps, I inputs per step, O forecasts per step.
"""

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save as safetensors_bytes
from series import Floats, Series
from torch import Tensor, nn

MODELS = Path(__file__).parent.parent / "models"
KINDS: dict[type[nn.RNNBase], str] = {nn.RNN: "rnn", nn.GRU: "gru", nn.LSTM: "lstm"}
Chain = Sequence[tuple[dict[str, object], Mapping[str, Tensor]]]  # layers: their entry in config.json, and their arrays


class Forecaster(nn.Module):
    """A recurrent network with a linear head over its hidden state: inputs (..., T, I) give forecasts (..., T, O).

    Both are in natural units. Means and standard deviations of the training section, (I,) and (O,), normalise on the
    way in and back on the way out, until `fold` moves them into the weights; `rollout` is for after that.
    """

    inputs_mean: Tensor
    inputs_std: Tensor
    targets_mean: Tensor
    targets_std: Tensor

    def __init__(self, recurrent: nn.RNNBase, series: Series) -> None:
        super().__init__()
        self.recurrent = recurrent
        self.head = nn.Linear(recurrent.hidden_size, len(series.horizons))
        training = series.section("training")
        for name, values in (("inputs", series.inputs[training]), ("targets", series.targets[training])):
            self.register_buffer(f"{name}_mean", torch.from_numpy(values.mean(0)))
            self.register_buffer(f"{name}_std", torch.from_numpy(values.std(0)))

    def forward(self, inputs: Tensor) -> Tensor:
        """Forecasts (..., T, O) after each step of inputs (..., T, I), from a state of zeros."""
        outputs, _ = self.recurrent((inputs - self.inputs_mean) / self.inputs_std)
        forecasts: Tensor = self.head(outputs) * self.targets_std + self.targets_mean
        return forecasts

    @torch.no_grad()
    def fold(self) -> None:
        """Move the normalisation into the weights, so that callers send plain observations.

        W (x - mean) / std + b = (W / std) x + (b - (W / std) mean); behind the head likewise.
        """
        first_layer = dict(self.recurrent.named_parameters())
        weight, bias = first_layer["weight_ih_l0"], first_layer["bias_ih_l0"]
        weight.div_(self.inputs_std)
        bias.sub_(weight @ self.inputs_mean)
        self.head.weight.mul_(self.targets_std[:, None])
        self.head.bias.mul_(self.targets_std).add_(self.targets_mean)
        for name in ("inputs", "targets"):
            getattr(self, f"{name}_mean").zero_()
            getattr(self, f"{name}_std").fill_(1)

    @torch.inference_mode()
    def run(self, inputs: Floats) -> Floats:
        """(T, O) from (T, I), the state carried from the first step on, as the service does."""
        forecasts: Floats = self(torch.from_numpy(inputs)).numpy()
        return forecasts

    @torch.inference_mode()
    def rollout(self, context: Floats, steps: int) -> Floats:
        """(steps, O) after context (T, I), for O = I: each forecast is the next input."""
        outputs, state = self.recurrent(torch.from_numpy(context))
        forecasts = [self.head(outputs[-1:])]
        for _ in range(steps - 1):
            outputs, state = self.recurrent(forecasts[-1], state)
            forecasts.append(self.head(outputs))
        rolled: Floats = torch.cat(forecasts).numpy()
        return rolled

    def validation_error(self, series: Series) -> float:
        """Mean square error over the validation section, in squares of the targets' standard deviations."""
        section = series.section("validation")
        error = self.run(series.inputs[: section.stop])[section] - series.targets[section]
        return float(np.mean(np.square(error / self.targets_std.numpy())))


def fit(model: Forecaster, series: Series, *, window: int, warmup: int, weight_decay: float) -> Forecaster:
    """The model with the least validation error on the way: Adam until 12 checks in a row bring nothing new.

    Each step sees 16 random windows of W = `window` steps from the training section; the first `warmup` of them fill
    the state and are not judged. A check comes every 25 steps.
    """
    inputs, targets = torch.from_numpy(series.inputs), torch.from_numpy(series.targets)
    starts_before = series.section("training").stop - window + 1
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=weight_decay)
    best, best_error, best_step, step = model, float("inf"), 0, 0
    while step - best_step < 12 * 25:
        step += 1
        starts = torch.randint(starts_before, (16,)).tolist()
        predicted = model(torch.stack([inputs[start : start + window] for start in starts]))[:, warmup:]
        expected = torch.stack([targets[start + warmup : start + window] for start in starts])
        loss = ((predicted - expected) / model.targets_std).square().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 25 == 0 and (error := model.validation_error(series)) < best_error:
            best, best_error, best_step = copy.deepcopy(model), error, step
    print(f"{series.model}: best of {step} steps was {best_step}, validation error {best_error:.4f}")
    return best


def save(
    name: str,
    recurrent: nn.RNNBase,
    description: str,
    head: nn.Linear | Chain | None = None,
    *,
    front: Chain = (),
    pooling: str = "none",
) -> None:
    """Write models/<name>/config.json and models/<name>/1/model.safetensors, as the service reads them."""
    folder = MODELS / name
    config: dict[str, object] = {
        "kind": KINDS[type(recurrent)],
        "input_size": recurrent.input_size,
        "hidden_size": recurrent.hidden_size,
    }
    if recurrent.bidirectional:
        config["bidirectional"] = True
    weights = dict(recurrent.state_dict())
    if front:
        config["front"] = _chain("front", front, weights)
    if pooling != "none":
        config["pooling"] = pooling
    if isinstance(head, nn.Linear):
        config["head"] = {"out_features": head.out_features}
        weights |= {f"head.{key}": value for key, value in head.state_dict().items()}
    elif head:
        config["head"] = _chain("head", head, weights)
    config["description"] = description
    (folder / "1").mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n")
    (folder / "1" / "model.safetensors").write_bytes(safetensors_bytes(weights))


def _chain(part: str, chain: Chain, weights: dict[str, Tensor]) -> list[dict[str, object]]:
    """The entries of a chain in config.json; its arrays are added to weights."""
    for index, (_, arrays) in enumerate(chain):
        weights |= {f"{part}.{index}.{key}": value for key, value in arrays.items()}
    return [entry for entry, _ in chain]


def figures(errors: dict[str, Floats], unit: str) -> str:
    """Test errors as one line of text: `persistence 0.872 / 1.92 / 3.07 °C; ...`, one figure a horizon."""
    return "; ".join(
        f"{name} {' / '.join(f'{value:#.3g}' for value in error)} {unit}" for name, error in errors.items()
    )
