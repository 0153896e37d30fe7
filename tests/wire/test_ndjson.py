"""Blocks of lines: what is read together is what would be read line by line, and so is what is printed."""

import json as standard

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from service.wire import json, ndjson

WIDTH = 3

numbers = st.floats(width=32, allow_nan=False, allow_infinity=False)
finite = hnp.arrays(np.float32, st.tuples(st.integers(1, 9), st.just(WIDTH)), elements=numbers)

FORMS = [
    "[{values}]",
    " [{values}]\r",
    '{{"inputs":[{values}],"step":{step}}}',
    '{{ "step" : {step} , "inputs" : [ {values} ] }}\r',
    '{{"inputs":[{values}]}}',
]


def one_by_one(lines):
    """What the reader of single lines makes of a block."""
    rows, steps = [], []
    for line in lines:
        fields = json.decode_steps(line)
        steps.append(fields.get("step") if isinstance(fields, dict) else None)
        rows.append(fields["inputs"] if isinstance(fields, dict) else fields)
    return np.stack(rows), steps


@given(values=finite, forms=st.lists(st.sampled_from(FORMS), min_size=9, max_size=9), first=st.integers(0, 10**17))
def test_block_is_read_as_its_lines_are(values, forms, first):
    lines = [
        form.format(values=",".join(map(repr, map(float, row))), step=first + index).encode()
        for index, (row, form) in enumerate(zip(values, forms, strict=False))
    ]
    inputs, steps = ndjson.decode(lines, WIDTH)
    wanted, wanted_steps = one_by_one(lines)
    assert inputs.tobytes() == wanted.tobytes()
    assert steps == wanted_steps


@given(text=st.lists(st.text(alphabet='[]{}",:1e0.-+ \\ntruela', max_size=12), min_size=1, max_size=3))
def test_no_garbage_is_read_as_something_else(text):
    """Whatever the reader of blocks accepts, the reader of lines reads alike."""
    lines = [part.encode() for part in text]
    try:
        inputs, steps = ndjson.decode(lines, 1)
    except json.Suspicious:
        return
    wanted, wanted_steps = one_by_one(lines)
    assert inputs.tobytes() == wanted.tobytes()
    assert steps == wanted_steps


@pytest.mark.parametrize(
    "bad",
    [
        [b"[1,2,true]"],
        [b"[1,2,null]"],
        [b"[1,2,NaN]"],
        [b"[1,2,1e39]"],
        [b"[1,2,1e999]"],
        [b'[1,2,"3"]'],
        [b"[1,2,{}]"],
        [b"[1,2,[]]"],
        [b"[1,2]", b"[3,4,5,6]"],
        [b"[1,2", b"3]"],
        [b'["a]', b'[b"]'],
        [b"[1,2,3],[4,5,6]"],
        [b"[,,]"],
        [b"[]"],
        [b"[1,2,3]x"],
        [b"[1,2,123456789012345678901234567890]"],
        [b'{"inputs":[1,2,3],"step":1,"step":2}'],
        [b'{"step":1,"inputs":[1,2,3],"step":2}'],
        [b'{"inputs":[1,2,3],"inputs":[1,2,3]}'],
        [b'{"inputs":[1,2,3],"step":01}'],
        [b'{"inputs":[1,2,3],"step":1.0}'],
        [b'{"inputs":[1,2,3],"step":-1}'],
        [b'{"inputs":[1,2,3],"stop":1}'],
        [b"[1,2,3]", b"null"],
        [b"\xff\xfe"],
    ],
)
def test_odd_block_is_left_to_line_reader(bad):
    with pytest.raises(json.Suspicious):
        ndjson.decode(bad, WIDTH)


@pytest.mark.parametrize("text", ["16777217", "16777219", "3.4028235677973362e38", "-0", "1e-46", "0.1"])
def test_numbers_are_rounded_as_in_one_line(text):
    line = f"[{text}]".encode()
    assert ndjson.decode([line], 1)[0].tobytes() == json.decode_steps(line).tobytes()


@given(outputs=hnp.arrays(np.float32, st.tuples(st.integers(1, 9), st.integers(1, 4))), first=st.integers(1, 10**12))
def test_answers_are_printed_as_one_by_one(outputs, first):
    predictions = -outputs[:, :1]
    for fields in ({}, {"outputs": outputs}, {"outputs": outputs, "predictions": predictions}):
        wanted = [
            json.encode({name: values[index] for name, values in fields.items()} | {"step": first + index}) + b"\n"
            for index in range(len(outputs))
        ]
        assert ndjson.encode(fields, first, len(outputs)) == wanted


def test_state_of_several_layers_is_printed():
    h = np.arange(6, dtype=np.float32).reshape(1, 2, 3)
    (line,) = ndjson.encode({"h": h}, 5, 1)
    assert standard.loads(line) == {"h": [[0, 1, 2], [3, 4, 5]], "step": 5}
