"""config.json: PyTorch's names, and a reason for everything that is not one."""

import pytest
from pydantic import ValidationError

from service.models.config import ModelConfig
from service.spec import ModelSpec

MINIMAL = {"kind": "rnn", "input_size": 4, "hidden_size": 3}


def test_defaults_are_pytorchs():
    assert ModelConfig.model_validate(MINIMAL).spec() == ModelSpec("rnn", 4, 3)


def test_every_field_reaches_the_spec():
    config = ModelConfig.model_validate(
        {
            "kind": "lstm",
            "input_size": 5,
            "hidden_size": 7,
            "num_layers": 2,
            "bias": False,
            "bidirectional": True,
            "proj_size": 3,
            "weights_dtype": "bf16",
            "head": {"out_features": 2},
            "description": "words",
        }
    )
    assert config.spec() == ModelSpec(
        "lstm", 5, 7, num_layers=2, bias=False, bidirectional=True, proj_size=3, weights_dtype="bf16"
    ).with_linear_head(2)


def test_training_arguments_are_ignored():
    extra = {"kind": "gru", "dropout": 0.5, "batch_first": True, "nonlinearity": "relu"}
    assert ModelConfig.model_validate(MINIMAL | extra).spec() == ModelSpec("gru", 4, 3)


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "transformer"},
        {"hidden_size": 0},
        {"hidden_size": 3.5},
        {"input_size": "4"},
        {"num_layers": -1},
        {"proj_size": 2},
        {"kind": "lstm", "proj_size": 3},
        {"head": {"in_features": 3}},
        {"hiden_size": 3},
    ],
)
def test_anything_else_is_an_error(wrong):
    with pytest.raises(ValidationError):
        ModelConfig.model_validate(MINIMAL | wrong)
