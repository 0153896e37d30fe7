"""safetensors files: the same bits as they went in, metadata beside them, and lying headers refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from safetensors.numpy import save

from service.errors import InvalidRequest, MalformedBody, ServiceError
from service.wire import safetensors


@given(arrays(np.float32, array_shapes(max_dims=3, max_side=5), elements=st.floats(width=32)))
def test_every_bit_survives(array):
    decoded = safetensors.decode(safetensors.encode({"x": array, "model": "m"}))
    assert decoded["x"].tobytes() == array.tobytes()
    assert decoded["x"].shape == array.shape
    assert decoded["model"] == "m"


@given(
    values=st.lists(
        arrays(np.float32, array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=4), elements=st.floats(width=32)),
        max_size=3,
    ),
    lengths=st.none() | arrays(np.int64, array_shapes(max_dims=1, max_side=5)),
)
def test_written_bytes_are_the_library_s(values, lengths):
    fields = {f"x{index}": value for index, value in reversed(list(enumerate(values)))}
    fields |= {} if lengths is None else {"lengths": lengths}
    written = safetensors.encode(fields | {"model": 'a "name"'})
    assert written == save(fields, {"model": 'a "name"'})


def test_pieces_are_the_arrays_themselves():
    array = np.zeros((3, 4), np.float32)
    header, data = safetensors.pieces({"x": array})
    array[0, 0] = 7
    assert np.frombuffer(data, np.float32)[0] == 7
    assert len(header) % 8 == 0


def test_other_fields_go_into_the_metadata():
    decoded = safetensors.decode(safetensors.encode({"returns": ["h_n"], "batch_first": True, "model": "m"}))
    assert decoded == {"returns": '["h_n"]', "batch_first": "true", "model": "m"}


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.float32])
def test_floats_become_float32(dtype):
    decoded = safetensors.decode(save({"x": np.array([1.5, -2], dtype)}))["x"]
    assert decoded.dtype == np.float32
    assert decoded.tolist() == [1.5, -2]


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_whole_numbers_become_int64(dtype):
    decoded = safetensors.decode(save({"lengths": np.array([3, 1], dtype)}))["lengths"]
    assert decoded.dtype == np.int64
    assert decoded.tolist() == [3, 1]


def test_other_dtypes_are_refused_by_name():
    with pytest.raises(MalformedBody, match="'x' is BOOL"):
        safetensors.decode(save({"x": np.array([True])}))


GOOD = save({"x": np.arange(6, dtype=np.float32)}, {"model": "m"})


def tensor(dtype, shape, size, end=None):
    """One array that the header describes so, of `size` bytes."""
    header = f'{{"x":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[0,{end or size}]}}}}'.encode()
    return len(header).to_bytes(8, "little") + header + bytes(size)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        GOOD[:7],
        GOOD[:-1],
        GOOD + b"x",
        (2**62).to_bytes(8, "little") + GOOD[8:],
        (2**20).to_bytes(8, "little") + GOOD[8:],
        GOOD.replace(b"[6]", b"[9]"),
        GOOD.replace(b"[0,24]", b"[8,24]"),
        GOOD.replace(b'"F32"', b'"F99"'),
        GOOD.replace(b"__metadata__", b"__metadatx__"),
        GOOD.replace(b'"__metadata__":{"model":"m"}', b'"y":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'),
        (10**5).to_bytes(8, "little") + b"[" * 10**5,
        tensor("F32", [0, 2**62, 4], 0),
        tensor("F32", [2**33, 2**33], 0),
        tensor("F32", [-1, 4], 16),
        tensor("F32", [1] * 65, 4),
        tensor("F32", [1], 4, end=99_999_999_999),
        tensor("BF16", [1, 4], 8),
        tensor("U8", [1, 4], 4),
        save({"x": np.zeros(1, np.float32)}, {"x": "twice"}),
    ],
)
def test_lying_header_is_refused(body):
    with pytest.raises(MalformedBody):
        safetensors.decode(body)


@given(st.binary(max_size=80))
def test_any_bytes_are_read_or_refused(tail):
    for body in (tail, len(tail).to_bytes(8, "little") + tail):
        try:
            safetensors.decode(body)
        except MalformedBody:
            continue


MARKS = [
    '"F64"',
    "[0,8]",
    "[-1]",
    "[2,1]",
    "[18446744073709551615]",
    "null",
    "{",
    "}",
    ",",
    '"x":',
    '"__metadata__":{"x":"y"}',
]


@given(text=st.sampled_from(MARKS), place=st.integers(0, 120), over=st.integers(0, 9), size=st.integers(0, 40))
def test_mutated_header_is_read_or_refused(text, place, over, size):
    header = GOOD[8:-24].decode()
    header = (header[:place] + text + header[place + over :]).encode()
    body = len(header).to_bytes(8, "little") + header + b"\x7f\xff" * size
    try:
        fields = safetensors.decode(body)
    except ServiceError:
        return
    assert sum(value.nbytes for value in fields.values() if isinstance(value, np.ndarray)) <= 4 * len(body)


def test_number_beyond_float32_is_named_among_many():
    values = np.full((100, 1000), 1e300)
    values[0, :7] = 1
    with pytest.raises(InvalidRequest, match=r"x\[0\]\[7\] is 1e\+300"):
        safetensors.decode(save({"x": values}))


def test_fields_have_a_limit():
    with pytest.raises(MalformedBody, match="33 fields"):
        safetensors.decode(save({"x": np.zeros(1, np.float32)}, {f"m{index}": "" for index in range(32)}))
