"""Models that go on by themselves, by both clients."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from safetensors.numpy import save_file

from rnn_client import InvalidRequest, StepConflict
from service.models.config import ModelConfig
from service.models.layer_config import LayerConfig, chain_layers
from service.spec import ModelSpec
from tests.e2e.running import start
from tests.reference import weights_of

FRONT = chain_layers("front", [LayerConfig(type="embedding", num_embeddings=9, embedding_dim=4)], 4)
SPECS = {
    "chars": replace(ModelSpec("gru", 4, 8).with_linear_head(9), front=FRONT),
    "series": ModelSpec("lstm", 3, 6).with_linear_head(3),
    "pooled": replace(ModelSpec("gru", 3, 6).with_linear_head(5), pooling="mean"),
}
OPTIONS = {"steps": 12, "seed": 3}


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    for name, spec in SPECS.items():
        (root / name / "1").mkdir(parents=True)
        (root / name / "config.json").write_text(ModelConfig.of_spec(spec).model_dump_json())
        save_file(weights_of(spec), root / name / "1" / "model.safetensors")
    running = start(root, tmp_path_factory.mktemp("service"))
    yield running
    running.stop()


def test_tokens_whole_and_streamed(client):
    rows = [np.array([1, 2, 3]), np.array([4])]
    result = client.generate(rows, "chars", stop=[5], returns=["tokens", "h_n"], **OPTIONS)
    assert result.tokens.dtype == np.int64
    assert (result.model, result.version, result.seed) == ("chars", "1", 3)
    steps = list(client.generate_stream(rows, "chars", stop=[5], returns=["tokens", "h_n"], **OPTIONS))
    assert [step.step for step in steps] == list(range(1, result.lengths.max() + 1))
    for row, length in enumerate(result.lengths):
        assert [step.tokens[row] for step in steps[:length]] == result.tokens[row, :length].tolist()
        assert all(step.tokens[row] is None for step in steps[length:])
    assert_array_equal(steps[-1].h_n, result.h_n)
    assert {(step.model, step.seed) for step in steps} == {("chars", 3)}


def test_row_goes_on_and_draws_the_same(client):
    whole = client.generate(np.array([1, 2]), "chars", **OPTIONS)
    first = client.generate(np.array([1, 2]), "chars", **OPTIONS | {"steps": 5})
    rest = client.generate(first.tokens[-1:], "chars", h0=first.h_n, step=7, **OPTIONS | {"steps": 7})
    assert [*first.tokens, *rest.tokens] == whole.tokens.tolist()
    assert_array_equal(rest.h_n, whole.h_n)


def test_rollout_with_inputs_known_ahead(client, row):
    inputs, future = np.ones((2, 3), np.float32), np.full((4, 3), 0.5, np.float32)
    options = {"steps": 5, "feedback": [0, None, 1], "future": future}
    result = client.generate(inputs, "series", **options)
    steps = list(client.generate_stream(inputs, "series", **options))
    assert_array_equal(np.stack([step.predictions for step in steps]), result.predictions)
    assert result.seed is None
    with pytest.raises(InvalidRequest, match="neither in feedback nor in future"):
        client.generate(inputs, "series", steps=5, feedback=[0, None, 1])
    with pytest.raises(InvalidRequest, match="temperature"):
        next(client.generate_stream(inputs, "series", steps=5, temperature=0.5))


def test_session_goes_on_by_itself(client):
    whole = client.generate(np.array([4]), "chars", **OPTIONS)
    with client.session("chars") as session:
        first = session.generate(4, steps=5, seed=3)
        assert session.done == first.step == 5
        with client.attach(session.id, done=0) as late:
            assert_array_equal(late.generate(4, steps=5, seed=3).tokens, first.tokens)
        with client.attach(session.id, done=0) as late, pytest.raises(StepConflict):
            late.generate(4, steps=6, seed=3)
        session.step(first.tokens[-1])
        session.step(whole.tokens[5:8])
        assert session.done == 9
        rest = session.generate(whole.tokens[8], steps=3, seed=3)
        assert rest.tokens.tolist() == whole.tokens[9:].tolist()


def test_stream_left_early_leaves_nothing(client, service):
    steps = client.generate_stream(np.ones((1, 3), np.float32), "series", steps=4096)
    assert next(steps).step == 1
    steps.close()
    assert client.generate(np.array([4]), "chars", steps=1).tokens.shape == (1,)


@pytest.mark.parametrize("returns", ["predictions", ["outputs", "predictions"]])
def test_stream_of_token_ids(client, returns):
    """One id is a step, a list is several; binary frames and text give the bits of a whole run."""
    ids = np.array([1, 2, 3, 8, 0])
    whole = client.forward(ids, "chars")
    with client.session("chars") as session:
        results = list(session.stream([1, 2, ids[2:]], returns=returns))
    predictions = np.concatenate([np.atleast_2d(result.predictions) for result in results])
    assert_array_equal(predictions, whole.predictions)
    with client.session("chars") as session, pytest.raises(ValueError, match="one token id, or k of them"):
        list(session.stream([[1.5]]))


def test_pooled_predictions_are_whole(client):
    """Rows of unequal length: outputs are cut to them, predictions (B,O) have no time."""
    rows = [np.ones((4, 3)), np.ones((2, 3))]
    result = client.forward(rows, "pooled", returns=["outputs", "predictions"])
    assert [row.shape for row in result.outputs] == [(4, 6), (2, 6)]
    assert result.predictions.shape == (2, 5)
    assert_array_equal(result.predictions[1], client.forward(rows[1], "pooled").predictions)
    info = client.model("pooled")
    assert (info.pooling, info.head, info.generates) == ("mean", ["linear"], False)
