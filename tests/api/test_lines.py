"""Lines out of a body that is still arriving."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.api.lines import blocks
from service.errors import BodyTooLarge


def collect(pieces, limit=1000):
    async def arriving():
        for piece in pieces:
            yield piece

    async def run():
        return [block async for block in blocks(arriving(), limit)]

    return asyncio.run(run())


@given(st.lists(st.text("ab {}", max_size=8).map(str.encode)), st.lists(st.integers(0, 80), max_size=6))
def test_lines_are_the_same_however_they_are_cut(lines, places):
    data = b"".join(line + b"\n" for line in lines)
    ends = sorted({min(place, len(data)) for place in places} | {len(data)})
    pieces = [data[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]
    assert [line for block in collect(pieces) for line in block] == lines


def test_lines_that_arrive_together_come_together():
    assert collect([b"1\n2\n3", b"\n4\n"]) == [[b"1", b"2"], [b"3", b"4"]]


def test_the_last_line_may_lack_its_newline():
    assert collect([b"1\n2"]) == [[b"1"], [b"2"]]


@pytest.mark.parametrize("pieces", [[b"x" * 11], [b"xxxxxx", b"xxxxxx"], [b"x" * 11 + b"\n"]])
def test_a_line_has_a_limit(pieces):
    with pytest.raises(BodyTooLarge):
        collect(pieces, limit=10)
