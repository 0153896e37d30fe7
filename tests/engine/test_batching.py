"""How rows are put into calls: every step of every row once, in order, within the bound."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.utils.rnn import pack_padded_sequence

from service.engine.batching import ALIKE, MIN_SLICE_STEPS, packing, plan

LENGTHS = st.lists(st.integers(0, 70), max_size=30)


@given(lengths=LENGTHS, most=st.integers(1, 300), sliceable=st.booleans(), side_by_side=st.booleans())
def test_every_step_of_every_row_runs_once_and_in_order(lengths, most, sliceable, side_by_side):
    done = np.zeros(len(lengths), np.int64)
    for call in plan(np.array(lengths, np.int64), most_steps=most, sliceable=sliceable, side_by_side=side_by_side):
        assert len(np.unique(call.rows)) == len(call.rows)
        assert (call.lengths > 0).all()
        assert (np.diff(call.lengths) <= 0).all()
        assert (done[call.rows] == call.begin).all()
        done[call.rows] += call.lengths
        assert call.steps <= most or (not sliceable and len(call.rows) == 1)
        if not sliceable:
            assert call.begin == 0
    assert done.tolist() == lengths


@given(lengths=LENGTHS, side_by_side=st.booleans())
def test_rows_are_cut_only_where_memory_or_likeness_asks_for_it(lengths, side_by_side):
    lengths = np.array(lengths, np.int64)
    calls = list(plan(lengths, most_steps=10_000, sliceable=True, side_by_side=side_by_side))
    if not side_by_side:
        assert len(calls) == bool(lengths.any())
    for call in calls:
        assert side_by_side or call.steps == lengths.sum()
        whole = lengths[call.rows]
        assert not side_by_side or whole.min() >= ALIKE * whole.max()


def calls_of(lengths, **options):
    options = {"most_steps": 10_000, "sliceable": True} | options
    return [(call.begin, call.lengths.tolist()) for call in plan(np.array(lengths), **options)]


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ([64] * 3, [(0, [64] * 3)]),
        ([60, 64, 60], [(0, [60] * 3), (60, [4])]),  # together as far as the shortest goes, then the one that is left
        ([1, 64, 1, 64], [(0, [64, 64]), (0, [1, 1])]),
        ([0, 0], []),
        ([], []),
    ],
)
def test_rows_side_by_side(lengths, expected):
    assert calls_of(np.array(lengths, np.int64), side_by_side=True) == expected


def test_a_bound_cuts_in_time_first_and_then_by_rows():
    assert calls_of([100, 100], most_steps=100) == [(0, [50, 50]), (50, [50, 50])]
    many = calls_of([MIN_SLICE_STEPS] * 10, most_steps=4 * MIN_SLICE_STEPS)
    assert [len(lengths) for _, lengths in many] == [4, 4, 2]
    assert calls_of([9, 9, 2], most_steps=10, sliceable=False) == [(0, [9]), (0, [9]), (0, [2])]


@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=8).map(lambda values: sorted(values, reverse=True)))
def test_packing_is_pytorchs(lengths):
    steps = np.arange(sum(lengths))
    padded = torch.zeros(len(lengths), lengths[0], dtype=torch.int64)
    for row, (length, end) in enumerate(zip(lengths, np.cumsum(lengths), strict=True)):
        padded[row, :length] = torch.from_numpy(steps[end - length : end])
    expected = pack_padded_sequence(padded, torch.tensor(lengths), batch_first=True)
    order, active = packing(np.array(lengths))
    assert order.tolist() == expected.data.tolist()
    assert active.tolist() == expected.batch_sizes.tolist()
