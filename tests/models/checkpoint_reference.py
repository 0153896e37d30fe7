"""Whether the reference of a model from a checkpoint computes what torch computes with these weights."""

import numpy as np

from tests.reference import numbers, run_reference


def check_reference(model, weights, tolerance=1e-12):
    spec, rng = model.spec, np.random.default_rng(0)
    ids = rng.integers(spec.num_embeddings or 1, size=(5, 1)).astype(np.float32)
    sequence = {"x": ids if spec.num_embeddings else numbers(rng, 5, spec.in_features)}
    sequence["h"] = numbers(rng, spec.states, spec.state_size)
    if spec.has_cell_state:
        sequence["c"] = numbers(rng, spec.states, spec.hidden_size)
    [results] = model.reference([sequence], np.float64)
    expected = vars(run_reference(spec, weights, *sequence.values()))
    expected = {name: array for name, array in expected.items() if array is not None}
    assert results.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(results[name], array, atol=tolerance * max(1, np.abs(array).max()), err_msg=name)
