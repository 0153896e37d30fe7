"""Wire formats: JSON and safetensors, gzip and zstd, and how Accept chooses."""

import json

import numpy as np
import pytest
from safetensors.numpy import load

from tests.reference import numbers

from .formats import COMPRESS, DECOMPRESS, JSON, SAFETENSORS, post_arrays
from .models import SMALL, SPECS, STEPPABLE
from .problems import assert_problem
from .raw import Wire, post


def metadata(body: bytes) -> dict[str, str]:
    size = int.from_bytes(body[:8], "little")
    return json.loads(body[8 : 8 + size])["__metadata__"]


def same_bits(from_json, from_safetensors):
    """Numbers printed in JSON parse back to the float32 that the binary reply carries."""
    parsed = np.array(from_json, np.float64)
    assert (parsed.astype(np.float32).view(np.int32) == from_safetensors.view(np.int32)).all()


@pytest.mark.parametrize("name", SMALL)
def test_formats_have_the_same_bits(service, name):
    rng = np.random.default_rng(1)
    spec = SPECS[name]
    arrays = {"inputs": numbers(rng, 3, 5, spec.input_size), "h0": numbers(rng, spec.states, 3, spec.state_size)}
    if spec.has_cell_state:
        arrays["c0"] = numbers(rng, spec.states, 3, spec.hidden_size)
    plain = service.post("/rnn/forward", {"model": name} | {key: array.tolist() for key, array in arrays.items()})
    binary = post_arrays(service, "/rnn/forward", arrays, model=name)
    assert (plain.headers["content-type"], binary.headers["content-type"]) == (JSON, SAFETENSORS)
    assert metadata(binary.content) == {"model": name, "version": "1"}
    replied = load(binary.content)
    assert replied.keys() == plain.json().keys() - {"model", "version"}
    for field, array in replied.items():
        same_bits(plain.json()[field], array)
    if name in STEPPABLE:
        inputs = arrays["inputs"][0]
        plain = service.post("/cell/step", {"model": name, "inputs": inputs.tolist()}).json()
        for field, array in load(post_arrays(service, "/cell/step", {"inputs": inputs}, model=name).content).items():
            same_bits(plain[field], array)


def test_metadata_holds_the_other_fields(service):
    arrays = {"inputs": numbers(np.random.default_rng(3), 5, 3, 4), "lengths": np.array([5, 2, 1])}
    fields = {"model": "gru", "version": "1", "batch_first": "false", "returns": '["last", "h_n"]'}
    binary = load(post_arrays(service, "/rnn/forward", arrays, **fields).content)
    plain = {"batch_first": False, "returns": ["last", "h_n"], "model": "gru"}
    plain |= {name: array.tolist() for name, array in arrays.items()}
    document = service.post("/rnn/forward", plain).json()
    assert binary.keys() == {"last", "h_n"}
    for field, array in binary.items():
        same_bits(document[field], array)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int64, np.int32])
def test_other_dtypes_are_converted(service, dtype):
    inputs = np.array([[1, -2, 3, 0]], dtype)
    reply = load(post_arrays(service, "/rnn/forward", {"inputs": inputs}, model="tanh").content)
    plain = service.post("/rnn/forward", {"model": "tanh", "inputs": inputs.tolist()}).json()
    same_bits(plain["outputs"], reply["outputs"])


def test_ragged_safetensors_reply_is_padded(service):
    body = {"model": "gru", "inputs": [[[1, 2, 3, 4]] * 3, [[4, 3, 2, 1]]]}
    plain = service.post("/rnn/forward", body).json()
    reply = service.post("/rnn/forward", body, headers={"accept": SAFETENSORS})
    arrays = load(reply.content)
    assert arrays["lengths"].tolist() == [3, 1]
    assert arrays["lengths"].dtype == np.int64
    for field in ("outputs", "predictions"):
        assert arrays[field].shape[:2] == (2, 3)
        assert not arrays[field][1, 1:].any()
        for row, length in enumerate((3, 1)):
            same_bits(plain[field][row], arrays[field][row, :length])


def test_safetensors_carries_nan(service):
    inputs = np.array([[1], [np.nan]], np.float32)
    reply = load(post_arrays(service, "/rnn/forward", {"inputs": inputs}, model="explodes").content)
    assert np.isfinite(reply["outputs"][0]).all()
    assert np.isnan(reply["outputs"][1]).all()
    asked = post_arrays(service, "/rnn/forward", {"inputs": inputs}, model="explodes", headers={"accept": JSON})
    assert_problem(asked, 422, "non-finite-output")


@pytest.mark.parametrize("accept", ["text/html", "a" * 50_000, "," * 30_000])
def test_accept_that_cannot_be_met(service, accept):
    reply = service.post("/rnn/forward", {"model": "tanh", "inputs": [[1, 2, 3, 4]]}, headers={"accept": accept})
    assert_problem(reply, 406, "not-acceptable", "Accept", JSON)


@pytest.mark.parametrize("kind", ["text/plain", f"{JSON}; charset=latin-1"])
@pytest.mark.parametrize("path", ["/rnn/forward", "/cell/step"])
def test_unknown_content_type(service, path, kind):
    reply = service.post(path, content=b'{"model":"tanh","inputs":[1,2,3,4]}', headers={"content-type": kind})
    assert_problem(reply, 415, "unsupported-media-type", kind)


BODY = {"model": "tanh", "inputs": [[0.1, 0.2, 0.3, 0.4]] * 500}


@pytest.mark.parametrize("encoding", COMPRESS)
def test_compressed_request_and_reply(service, encoding):
    plain = service.post("/rnn/forward", BODY, headers={"accept-encoding": "identity"})
    request = post(
        "/rnn/forward",
        COMPRESS[encoding](json.dumps(BODY).encode()),
        {"Content-Encoding": encoding, "Accept-Encoding": encoding},
    )
    with Wire(service) as wire:
        wire.send(request)
        reply = wire.reply()
    assert (reply.status, reply.headers["content-encoding"]) == (200, encoding)
    assert reply.headers["vary"].lower() == "accept-encoding"
    assert len(reply.body) < len(plain.content) / 4
    assert DECOMPRESS[encoding](reply.body) == plain.content
