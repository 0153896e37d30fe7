"""How long refused connections are left alone."""

import asyncio

from service.server.refusals import AHEAD_SECONDS, MOST_OF_THE_TIME, MOST_PAUSE_SECONDS, REFUSAL_SECONDS, Refusals


class Clock(asyncio.SelectorEventLoop):
    """An event loop whose time is set by hand, and whose timers are read."""

    def __init__(self):
        super().__init__()
        self.now = 1000.0
        self.timers = []

    def time(self):
        return self.now

    def call_later(self, delay, callback, *args, context=None):
        self.timers.append((delay, callback, args))


class Connection:
    """The flow and the transport of one."""

    def __init__(self):
        self.paused = False

    def pause_reading(self):
        self.paused = True

    def resume_reading(self):
        self.paused = False

    def is_closing(self):
        return False


def refused(times, *, every, body_bytes=0):
    """Pauses, in seconds, of so many refusals on connections of their own."""

    async def main():
        refusals = Refusals()
        for _ in range(times):
            connection = Connection()
            refusals.pause(body_bytes, connection, connection)
            assert connection.paused == (len(clock.timers) > len(pauses))
            for delay, callback, args in clock.timers[len(pauses) :]:
                pauses.append(delay)
                callback(*args)
                assert not connection.paused
            clock.now += every

    clock, pauses = Clock(), []
    try:
        clock.run_until_complete(main())
    finally:
        clock.close()
    return pauses


def test_refusals_within_their_part_of_the_time_cost_their_clients_nothing():
    assert refused(1000, every=1.01 * REFUSAL_SECONDS / MOST_OF_THE_TIME) == []


def test_a_burst_may_be_ahead():
    fit = int(AHEAD_SECONDS * MOST_OF_THE_TIME / REFUSAL_SECONDS)
    assert refused(fit - 1, every=0) == []
    assert len(refused(fit + 10, every=0)) >= 9


def test_beyond_that_connections_are_left_alone_for_as_long_as_refusals_are_ahead():
    pauses = refused(2000, every=0.5 * REFUSAL_SECONDS / MOST_OF_THE_TIME)
    assert pauses == sorted(pauses)
    ahead = 2000 * 0.5 * REFUSAL_SECONDS / MOST_OF_THE_TIME
    assert abs(pauses[-1] - ahead) < 0.05 * ahead
    assert max(refused(200, every=0, body_bytes=2**30)) == MOST_PAUSE_SECONDS
