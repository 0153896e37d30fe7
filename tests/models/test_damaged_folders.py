"""A model folder that is damaged in any way is that model's failure alone."""

import json
import os

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.engine.torch_engine import TorchEngine
from service.errors import ModelFailed
from service.models.config import ModelConfig
from service.models.folder import scan
from service.models.weights import read_weights
from tests.reference import weights_of

CONFIG = {
    "kind": "rnn",
    "input_size": 2,
    "hidden_size": 3,
    "bias": False,
    "front": [{"type": "normalize", "eps": 1e-6}, {"type": "linear", "out_features": 2, "bias": False}],
    "head": [{"type": "layer_norm", "normalized_shape": [3]}],
    "description": "whole",
}
STATES = {"h0": np.ones((1, 3), np.float32)}
SMALL = {"kind": "rnn", "input_size": 4, "hidden_size": 3}
FILES = ("config.json", "1/model.safetensors")
TWICE = "(twice)"  # ends the name of an entry that is written under the name before it
BROKEN = [b"\xff", b"\xed\xa0\x80", b"[" * 3000 + b"]" * 3000, b'{"a":' * 3000 + b"1" + b"}" * 3000]

numbers = st.integers() | st.floats() | st.sampled_from([2**63, 2**64, -(2**64), 10**400, 1e308, -1, 0])
scalars = st.none() | st.booleans() | numbers | st.text(max_size=5)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)


def places(document):
    """Every container in a document, with each of its keys."""
    for key in list(document) if isinstance(document, dict) else range(len(document)):
        yield document, key
        if isinstance(document[key], (dict, list)):
            yield from places(document[key])


def instead_of(value):
    if isinstance(value, int):
        return st.sampled_from([float(value), str(value), [value], -value, value + 2**64, bool(value)]) | values
    return st.sampled_from([[value], {"a": value}, str(value)]) | values


@st.composite
def damaged(draw, text):
    """A JSON document with some of it replaced, left out or there twice, and then bytes of it changed."""
    document = [json.loads(text)]
    for _ in range(draw(st.integers(0, 2))):
        container, key = draw(st.sampled_from(list(places(document))))
        what = draw(st.sampled_from(["replace", "remove", "repeat"]))
        if what == "remove" and container is not document:
            del container[key]
        else:
            repeats = what == "repeat" and isinstance(container, dict)
            container[f"{key}{TWICE}" if repeats else key] = draw(instead_of(container[key]))
    written = json.dumps(document[0]).replace(TWICE, "").encode()
    for _ in range(draw(st.integers(0, 1))):
        start, length = draw(st.integers(0, len(written))), draw(st.integers(0, 3))
        written = written[:start] + draw(st.sampled_from(BROKEN) | st.binary(max_size=3)) + written[start + length :]
    return written


def header_and_data(path):
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    return content[8:end], content[end:]


def write_header(path, header, data):
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)


@pytest.mark.parametrize("file", FILES)
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_is_one_models_failure(write_model, tmp_path, file, data):
    """And what is listed as sound can be loaded and run, or is refused when it is loaded."""
    write_model("bad", CONFIG, arrays=weights_of(ModelConfig.model_validate(CONFIG).spec()) | STATES)
    write_model("good", SMALL)
    path = tmp_path / "bad" / file
    if path.suffix == ".json":
        path.write_bytes(data.draw(damaged(path.read_bytes())))
    else:
        header, arrays = header_and_data(path)
        write_header(path, data.draw(damaged(header)), arrays)
    found = scan(tmp_path)
    assert [found["good"].failure, *(version.failure for version in found["good"].versions)] == [None, None]
    assert found["bad"].failure or found["bad"].versions
    for version in found["bad"].versions:
        if not version.failure:
            try:
                arrays = read_weights(version.weights, version.spec).arrays
            except ModelFailed:
                continue
            TorchEngine(version.spec, arrays, device=torch.device("cpu"))


@pytest.mark.parametrize("kind", [float, bool])
@pytest.mark.parametrize("name", ["data_offsets", "shape"])
def test_header_of_other_numbers_than_whole_ones(write_model, tmp_path, name, kind):
    write_model("bad", SMALL, arrays=write_model("good", SMALL) | STATES)
    path = tmp_path / "bad" / FILES[1]
    header, data = header_and_data(path)
    header = json.loads(header)
    header["h0"][name][0] = kind(header["h0"][name][0])
    write_header(path, json.dumps(header).encode(), data)
    found = scan(tmp_path)
    assert found["good"].versions[0].failure is None
    assert "its header cannot be read" in found["bad"].versions[0].failure


def test_folder_whose_name_is_no_text(write_model, tmp_path):
    write_model("good", SMALL)
    os.mkdir(os.path.join(os.fsencode(tmp_path), b"m\xff"))  # noqa: PTH102, PTH118  # pathlib has no bytes
    found = scan(tmp_path)
    assert {name: folder.name for name, folder in found.items()} == {"good": "good", "m\\xff": "m\\xff"}
    assert "the model's name is not what it must be" in found["m\\xff"].failure


def test_link_that_cannot_be_followed(write_model, tmp_path):
    write_model("good", SMALL)
    (tmp_path / "bad").symlink_to("a" * 300)
    assert {name: folder.failure for name, folder in scan(tmp_path).items()} == {
        "good": None,
        "bad": "config.json cannot be read: File name too long",
    }
    with pytest.raises(ModelFailed, match="cannot be listed: File name too long"):
        scan(tmp_path / "bad")
