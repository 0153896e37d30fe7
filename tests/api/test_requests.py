"""What clients send is checked field by field; whatever is wrong is named."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from service.api.requests import ForwardRequest, GenerateRequest, StepLine, StreamRequest, validate
from service.api.v2.models import LoadRequest
from service.api.v2.requests import InferRequest
from service.errors import InvalidRequest

KINDS = [ForwardRequest, GenerateRequest, StreamRequest, StepLine, InferRequest]
TRIED = ["int", "str", "constrained-str", "list[int]"]  # what pydantic calls the types of a field


def errors_of(kind, fields, **options):
    with pytest.raises(InvalidRequest) as caught:
        validate(kind, fields, **options)
    return caught.value.errors


@given(kind=st.sampled_from(KINDS), name=st.sampled_from(TRIED) | st.text(max_size=90))
@example(kind=ForwardRequest, name="")
def test_unknown_field_is_named(kind, name):
    if name in kind.model_fields:
        return
    (error,) = (error for error in errors_of(kind, {name: 1}) if "is not a field" in error.msg)
    assert error.loc == (name[:80],)


@pytest.mark.parametrize("name", TRIED)
def test_unknown_field_of_a_tensor_is_named(name):
    tensor = {"name": "inputs", "datatype": "FP32", "shape": [1], "data": [0], name: 1}
    assert [error.loc for error in errors_of(InferRequest, {"inputs": [tensor]})] == [("inputs", 0, name)]
    assert errors_of(LoadRequest, {"parameters": {name: True}})


def test_field_of_several_types_is_named_without_them():
    assert {error.loc for error in errors_of(GenerateRequest, {"inputs": np.ones(3), "steps": 1, "seed": "x"})} == {
        ("seed",)
    }


@pytest.mark.parametrize("field", ["stop", "seed", "feedback"])
@pytest.mark.parametrize("values", [[np.inf, np.nan], [np.nan, 1], [-np.inf], [2.0**25], [1.5]])
def test_whole_numbers_are_whole(field, values):
    fields = {"inputs": np.ones(3), "steps": 1, field: np.array(values, np.float32)}
    assert {error.loc[0] for error in errors_of(GenerateRequest, fields, texts=True)} == {field}
    fields[field] = np.array([1, 2], np.float32)
    assert getattr(validate(GenerateRequest, fields), field) == [1, 2]
