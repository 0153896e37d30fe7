"""The recipes of docs/importing.md: each is run as it stands there, and gives what the model gives."""

import re
import shlex
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from service.cli import build_app
from tests.models.test_tensors import other_objects

PAGE = Path("docs/importing.md").read_text()
SECTION = PAGE.partition("## You have this model: do this")[2].partition("\n## ")[0]
RECIPES = {part.partition("\n")[0]: part for part in SECTION.split("\n### ")[1:]}
IDS = {"Embedding, GRU": 100, "over words": 500, "sentiment": 500}
WIDTHS = {"LSTM and Linear": 6, "PPO": 8, "Lightning": 5, "speaker": 40, "scaled": 3}
SCALERS = {
    "x_mean": torch.tensor([100.0, 0.0, -5.0]),
    "x_scale": torch.tensor([20.0, 1.0, 0.1]),
    "y_mean": torch.tensor([1000.0]),
    "y_scale": torch.tensor([250.0]),
}


def build(recipe: str):
    torch.manual_seed(0)
    module = sys.modules["recipe"] = types.ModuleType("recipe")  # where a pickle finds the class
    vars(module).update(SCALERS, nn=torch.nn, torch=torch, F=torch.nn.functional)
    exec(re.search(r"```python\n(.*?)```", RECIPES[recipe], re.DOTALL)[1], vars(module))
    return [made for made in vars(module).values() if isinstance(made, type)][-1]().eval()


def inputs_for(recipe: str) -> torch.Tensor:
    for words, count in IDS.items():
        if words in recipe:
            return torch.randint(count, (3, 7))
    [width] = [width for words, width in WIDTHS.items() if words in recipe]
    x = torch.randn(3, 7, width)
    return x * SCALERS["x_scale"] + SCALERS["x_mean"] if "scaled" in recipe else x


def save(model, path: Path) -> None:
    """As the program that the recipe is about does."""
    state = model.state_dict()
    if path.suffix == ".zip":
        torch.save(state, path.with_name("policy.pth"))
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("data", "{}")
            archive.write(path.with_name("policy.pth"), "policy.pth")
    elif path.suffix == ".ckpt":
        torch.save(other_objects() | {"epoch": 9, "state_dict": state}, path)
    else:
        torch.save(state, path)


def command_of(recipe: str) -> list[str]:
    command = re.search(r"```sh\nrnn-service (import .*?)```", RECIPES[recipe], re.DOTALL)[1]
    return shlex.split(command.replace("\\\n", ""))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in "xy":
        np.savez(f"{name}.npz", mean=SCALERS[f"{name}_mean"].numpy(), scale=SCALERS[f"{name}_scale"].numpy())
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(build_app(), [*map(str, arguments)])


def test_all_recipes_are_here():
    assert len(RECIPES) == 8


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("form", ["its own", "whole", "scripted"])
@pytest.mark.filterwarnings("ignore")  # the tracer warns of much
def test_recipe_gives_what_the_model_gives(folder, recipe, form):
    model, x, command = build(recipe), inputs_for(recipe), command_of(recipe)
    path = folder / command[1]
    if form == "its own":
        save(model, path)
    elif form == "whole":
        torch.save(model, path)
    else:
        torch.jit.save(torch.jit.trace(model, x), path)
    with torch.no_grad():
        save_file({"inputs": x, "predictions": model(x).contiguous()}, folder / "sample.safetensors")
    result = run(*command, "--expect", "sample.safetensors")
    assert result.exit_code == 0, result.output
    assert re.search(r"expected: largest difference \S+ of the allowed 1e-04, over 3 sequences", result.stdout)
    assert ("verified without lstm_critic" in result.stdout or "verified without value_net" in result.stdout) == (
        "PPO" in recipe
    )


@pytest.mark.parametrize("recipe", RECIPES)
def test_sample_shows_a_wrong_recipe(folder, recipe):
    """Without its last word, or with one more: the model is verified, and the sample says no."""
    model, x, command = build(recipe), inputs_for(recipe), command_of(recipe)
    save(model, folder / command[1])
    with torch.no_grad():
        save_file({"inputs": x, "predictions": model(x).contiguous()}, folder / "sample.safetensors")
    command[command.index("--head") + 1] += ",sigmoid"
    result = run(*command, "--expect", "sample.safetensors")
    assert result.exit_code == 1
    assert re.search(r"not imported: predictions\[0\] of sample.safetensors differs", result.stderr)
    assert not (folder / "models").exists()


@pytest.mark.filterwarnings("ignore")  # of the exporter
@pytest.mark.parametrize("recipe", RECIPES)
def test_onnx_file_needs_no_option(folder, recipe):
    """The same models as torch.onnx.export writes them."""
    model, x = build(recipe), inputs_for(recipe)
    axes = {"x": {0: "rows", 1: "steps"}, "y": {0: "rows"}}
    torch.onnx.export(model, (x,), "model.onnx", input_names=["x"], output_names=["y"], dynamic_axes=axes, dynamo=False)
    with torch.no_grad():
        predictions = model(x)
    save_file({"inputs": x, "predictions": predictions.contiguous()}, "sample.safetensors")
    result = run("import", "model.onnx", "--name", "m", "--expect", "sample.safetensors")
    assert result.exit_code == 0, result.stdout + result.stderr
    assert "expected: largest difference" in result.stdout
