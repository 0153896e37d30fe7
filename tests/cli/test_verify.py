"""What an import compares: whole models, as they are served."""

from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from service.cli.verify import expect_sample, verify
from service.models.importing.model import CheckpointModel, Stored, torch_reference
from service.models.importing.refusal import CheckpointRefused
from service.models.importing.staging import staged
from service.spec import ModelSpec
from tests.reference import run_chain, run_reference, specs, weights_of, with_chains

POOLINGS = ("none", "last", "final", "mean", "max")


@st.composite
def whole_models(draw):
    spec = with_chains(lambda options: draw(st.sampled_from(options)), draw(specs(layers=2, size=6)))
    return replace(spec, pooling=draw(st.sampled_from(POOLINGS))) if spec.head else spec


def model_of(spec, weights):
    arrays = {name: torch.from_numpy(array) for name, array in weights.items()}
    stored = {name: Stored(tensor, name) for name, tensor in arrays.items()}
    return CheckpointModel("", spec, stored, *torch_reference(spec, arrays), [], [])


@contextmanager
def written(root, model):
    with staged(root, "m", model.spec, model.arrays, version=None, description=None) as folder:
        yield folder.root


@settings(max_examples=25)
@given(spec=whole_models(), seed=st.integers(0, 9))
def test_whole_models_pass(tmp_path_factory, spec, seed):
    model = model_of(spec, weights_of(spec, seed))
    with written(tmp_path_factory.mktemp("models"), model) as root:
        assert verify(root, "m", model).passed


@settings(max_examples=50)
@given(spec=whole_models(), seed=st.integers(0, 9))
def test_reference_agrees_with_independent_one(spec, seed):
    rng, weights = np.random.default_rng(seed), weights_of(spec, seed)
    x = rng.standard_normal((5, spec.in_features)).astype(np.float32)
    x = rng.integers(spec.num_embeddings, size=x.shape).astype(np.float32) if spec.num_embeddings else x
    states = {"h": np.zeros((spec.states, spec.state_size), np.float32)}
    states |= {"c": np.zeros((spec.states, spec.hidden_size), np.float32)} if spec.has_cell_state else {}
    [actual] = model_of(spec, weights).reference([{"x": x, **states}], np.float64)
    expected = run_reference(spec, weights, x)
    outputs = torch.from_numpy(expected.outputs)
    np.testing.assert_allclose(actual["outputs"], expected.outputs, atol=1e-9)
    if spec.head:
        reads = {
            "none": outputs,
            "last": outputs[-1:],
            "final": torch.from_numpy(expected.h[-spec.directions :]).reshape(1, -1),
            "mean": outputs.mean(0, keepdim=True),
            "max": outputs.max(0, keepdim=True).values,
        }[spec.pooling]
        tensors = {name: torch.from_numpy(array) for name, array in weights.items()}
        wanted = run_chain(spec.head, tensors, reads).numpy()
        np.testing.assert_allclose(actual["predictions"], wanted, atol=1e-9 * max(1, np.abs(wanted).max()))


@pytest.mark.parametrize("pooling", POOLINGS)
def test_other_pooling_or_head_is_noticed(tmp_path, pooling):
    spec = replace(ModelSpec("gru", 3, 4, bidirectional=True).with_linear_head(2), pooling=pooling)
    weights = weights_of(spec)
    other = replace(spec, pooling="mean" if pooling != "mean" else "max")
    with written(tmp_path, model_of(spec, weights)) as root:
        weights["head.bias"] = weights["head.bias"] + np.float32(1e-3)
        assert not verify(root, "m", model_of(spec, weights)).passed
        weights["head.bias"] -= np.float32(1e-3)
        reference = replace(model_of(spec, weights), reference=model_of(other, weights).reference)
        assert pooling == "none" or not verify(root, "m", reference).passed


CHANGES = {
    "no rank": lambda a: a.ravel()[0],
    "one rank": np.ravel,
    "rank less": lambda a: a[0],
    "rank more": lambda a: a[None],
    "rows less": lambda a: a[:-1],
    "rows more": lambda a: np.concatenate([a, a]),
    "no rows": lambda a: a[:0],
    "last axis less": lambda a: a[..., :-1],
    "last axis more": lambda a: np.concatenate([a, a], -1),
    "steps more": lambda a: np.concatenate([a, a], 1) if a.ndim > 1 else a[:0],
}


@pytest.mark.parametrize("pooling", ["none", "mean"])
@pytest.mark.parametrize("name", ["inputs", "lengths", "outputs", "predictions"])
@pytest.mark.parametrize("change", CHANGES)
def test_sample_of_other_ranks_and_lengths_is_refused(tmp_path, pooling, name, change):
    spec = replace(ModelSpec("gru", 3, 4).with_linear_head(2), pooling=pooling)
    weights = weights_of(spec)
    inputs = np.random.default_rng(0).standard_normal((3, 5, 3)).astype(np.float32)
    rows = [run_reference(replace(spec, pooling="none", head=()), weights, row) for row in inputs]
    outputs = np.stack([row.outputs for row in rows])
    read = outputs.mean(1) if pooling == "mean" else outputs
    predictions = read @ weights["head.weight"].T + weights["head.bias"]
    sample = {"inputs": inputs, "lengths": np.full(3, 5), "outputs": outputs, "predictions": predictions}
    with written(tmp_path, model_of(spec, weights)) as root:
        save_file(sample, tmp_path / "s.safetensors")
        assert "over 3 sequences" in expect_sample(root, "m", tmp_path / "s.safetensors")
        sample[name] = np.array(CHANGES[change](sample[name]), order="C")
        save_file(sample, tmp_path / "s.safetensors")
        if (name, change) in (("lengths", "one rank"), ("lengths", "rank more")):
            return  # the same three numbers
        with pytest.raises(CheckpointRefused, match=r"s\.safetensors"):
            expect_sample(root, "m", tmp_path / "s.safetensors")


def test_sample_with_predictions_of_no_head(tmp_path):
    spec = ModelSpec("gru", 3, 4)
    with written(tmp_path, model_of(spec, weights_of(spec))) as root:
        zeros = {name: np.zeros((2, 5, 3), np.float32) for name in ("inputs", "predictions")}
        save_file(zeros, tmp_path / "s.safetensors")
        with pytest.raises(CheckpointRefused, match="has predictions, and the model has no head that makes them"):
            expect_sample(root, "m", tmp_path / "s.safetensors")
