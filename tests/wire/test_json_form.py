"""Bodies of one form differ in their numbers alone."""

import re

import numpy as np
import orjson
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from service.wire.json import Suspicious
from service.wire.json_form import Reader, form_of, read_numbers

BODY = b'{"model":"m1","inputs":[[1,-2.5],[3e2,4]]}'


@pytest.mark.parametrize(
    "other",
    [
        b'{"model":"m1","inputs":[[0.125,7],[1E-3,-1]]}',
        b'{ "model" : "m1",\n"inputs":[[1, -2.5], [3e2,\t4]]}',
    ],
)
def test_numbers_and_blanks_do_not_matter(other):
    assert form_of(other) == form_of(BODY)


@pytest.mark.parametrize(
    "other",
    [
        b'{"model":"m2","inputs":[[1,-2.5],[3e2,4]]}',
        b'{"mode":"m1","inputs":[[1,-2.5],[3e2,4]]}',
        b'{"inputs":[[1,-2.5],[3e2,4]],"model":"m1"}',
        b'{"model":"m1","inputs":[[1,-2.5,3e2],[4]]}',
        b'{"model":"m1","inputs":[[1,-2.5],[3e2,[4]]]}',
        b'{"model":"m1","inputs":[[1,-2.5],[3e2,true]]}',
        b'{"model":"m1","inputs":[[1,-2.5],[3e2,"4"]]}',
        b'{"model":"m1","inputs":[[1,-2.5],[3e2,NaN]]}',
    ],
)
def test_everything_else_does(other):
    assert form_of(other) != form_of(BODY)


def test_escaped_texts_have_no_form():
    assert form_of(rb'{"m\u006fdel":"m1"}') is None


LEAVES = st.one_of(st.floats(-1e30, 1e30), st.integers(-9, 9), st.sampled_from(["1", "e", "", None, True]))
LISTS = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3), max_leaves=12)


@given(st.dictionaries(st.sampled_from(["a1", "a2", "b", "1"]), LISTS, max_size=3), st.data())
def test_of_one_form_and_as_many_numbers_is_one_nesting_unless_a_list_is_empty(fields, data):
    body = orjson.dumps(fields)
    assume(b"[]" not in body)
    numbers = st.sampled_from(["0", "-1.5", "2e-3", "", "null", "[]"])
    other = re.sub(rb"(?<=[\[,:])-?\d[^,\]}]*(?=[,\]}])", lambda _: data.draw(numbers).encode(), body)
    try:
        parsed = orjson.loads(other)
    except orjson.JSONDecodeError:
        return
    if form_of(other) == form_of(body) and _count(parsed) == _count(fields):
        assert _without_numbers(parsed) == _without_numbers(fields)


def _count(value):
    if isinstance(value, dict | list):
        return sum(map(_count, value.values() if isinstance(value, dict) else value))
    return isinstance(value, int | float) and not isinstance(value, bool)


def _without_numbers(value):
    if isinstance(value, dict):
        return [(name, _without_numbers(item)) for name, item in value.items()]
    if isinstance(value, list):
        return [_without_numbers(item) for item in value]
    return "number" if _count(value) else value


def test_numbers_are_read_in_order():
    reader, into = Reader(), np.zeros(4, np.float32)
    for _ in range(2):
        read_numbers(reader.parse(BODY)["inputs"], into)
        assert into.tolist() == [1, -2.5, 300, 4]


@pytest.mark.parametrize("numbers", [b"[[1,2],[3]]", b"[1]", b"[]", b"[1,2,3,1e39]", b"[1,2,3,4,5]"])
def test_more_fewer_or_too_large_ones_are_refused(numbers):
    with pytest.raises(Suspicious):
        read_numbers(Reader().parse(numbers), np.zeros(4, np.float32))


@pytest.mark.parametrize("numbers", [b"[1,2,3,true]", b'["1",2,3,4]', b"[1,2,3,null]"])
def test_what_is_no_number_is_refused(numbers):
    with pytest.raises((TypeError, ValueError)):
        read_numbers(Reader().parse(numbers), np.zeros(4, np.float32))
