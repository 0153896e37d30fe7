"""What the log says of a store that fails."""

from contextlib import suppress

from structlog.testing import capture_logs

from service import repeats
from service.errors import StoreUnavailable
from service.stores import batches
from tests.loop import in_loop


@in_loop
async def test_outage_is_logged_when_it_begins_lasts_and_ends(monkeypatch):
    failing = [*range(10, 150), 300, 302]  # the seconds at which calls fail
    clock = 0

    async def run(calls):
        if clock in failing:
            raise batches.unavailable(OSError("gone"))
        return calls

    for module in (batches, repeats):
        monkeypatch.setattr(module, "monotonic", lambda: clock)
    store, told = batches.Batches(run), []
    for clock in range(400):
        with capture_logs() as lines, suppress(StoreUnavailable):
            await store.call(clock)
        told += [(clock, line["event"], line.get("reason")) for line in lines]
    begins, ends = "session_store_unavailable", "session_store_available"
    assert told == [
        *((second, begins, "gone") for second in (10, 70, 130)),
        (154, ends, None),
        (300, begins, "gone"),
        (307, ends, None),
    ]
