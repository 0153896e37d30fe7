"""What is folded into a histogram is what observing one by one would have put there."""

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from service.api.tallies import Tally

BOUNDS = (0.5, 1.0, 2.0)


@given(st.lists(st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0, 2.0, 2.5, 100.0]))))
def test_folding_is_observing(batches):
    pages = []
    for folded in (True, False):
        registry = CollectorRegistry()
        histogram = Histogram("h", "h", ("x",), buckets=BOUNDS, registry=registry).labels("y")
        tally = Tally(histogram, BOUNDS)
        for batch in batches:
            for value in batch:
                (tally if folded else histogram).observe(value)
            tally.fold()
        lines = generate_latest(registry).decode().splitlines()
        pages.append([line for line in lines if "_created" not in line])
    assert pages[0] == pages[1]
