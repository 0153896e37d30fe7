"""What an import compares: whole models, as they are served."""

from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from service.cli.verify import verify
from service.models.importing.model import CheckpointModel, torch_reference
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
    return CheckpointModel("", spec, arrays, {}, *torch_reference(spec, arrays), [], [])


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
