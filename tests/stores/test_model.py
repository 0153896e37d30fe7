"""Random calls give the answers of a plain dictionary."""

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.stores.interface import ENDED_SECONDS, Ended, Totals, Weights
from tests.loop import in_loop
from tests.stores.conftest import opened
from tests.stores.records import OWNER, T0, after, expire, record

WEIGHTS = [Weights("m", "1", b"a"), Weights("m", "2", b"a")]

calls = st.one_of(
    st.tuples(
        st.just("create"), st.sampled_from(WEIGHTS), st.sampled_from([0.5, 3.0, 40.0, 1e6]), st.binary(max_size=90)
    ),
    st.tuples(
        st.just("replace"),
        st.integers(0, 9),
        st.sampled_from(WEIGHTS),
        st.sampled_from([3.0, 40.0]),
        st.binary(max_size=9),
    ),
    st.tuples(st.just("commit"), st.integers(0, 9), st.integers(-1, 1), st.binary(max_size=90)),
    st.tuples(st.just("end"), st.integers(0, 9), st.sampled_from(["any", "this", "earlier"])),
    st.tuples(st.just("expire")),
    st.tuples(st.just("evict"), st.integers(1, 3)),
    st.tuples(st.just("page"), st.integers(0, 9), st.integers(1, 4)),
    st.tuples(st.just("wait"), st.sampled_from([0.25, 1.0, 30.0, ENDED_SECONDS])),
)


class Model:
    """A store as one would write it down: everything is looked at, nothing is kept in order."""

    def __init__(self):
        self.live, self.ended, self.now, self.made = {}, {}, T0, 0

    def name(self, number):
        return f"s{number}"

    async def play(self, store, call):
        self.now += 2**-10  # every call has a time of its own
        await getattr(self, call[0])(store, *call[1:])
        for number in range(self.made):
            session = self.name(number)
            assert await store.load(session) == (self.live.get(session) or self.ended.get(session))
        assert store.totals == Totals(len(self.live), sum(found.nbytes for found in self.live.values()))
        users = [found.weights for found in self.live.values()]
        assert dict(await store.in_use()) == {weights: users.count(weights) for weights in set(users)}

    async def wait(self, _, seconds):
        self.now += seconds

    async def create(self, store, weights, ttl_seconds, state):
        session = self.name(self.made)
        self.made += 1
        values = {"weights": weights, "ttl_seconds": ttl_seconds, "state": state, "used_at": self.now}
        await store.create(record(session, **values))
        self.live[session] = record(session, **values)

    async def replace(self, store, number, weights, ttl_seconds, state):
        session = self.name(number)
        self.made = max(self.made, number + 1)
        values = {"weights": weights, "ttl_seconds": ttl_seconds, "state": state, "used_at": self.now}
        values |= {"created_at": self.now, "revision": 2**61 + self.made}
        assert await store.create(record(session, **values)) == self.live.get(session)
        self.ended.pop(session, None)
        self.live[session] = record(session, **values)

    async def commit(self, store, number, off, state):
        session = self.name(number)
        found = self.live.get(session)
        position = found.position if found else record().position
        new = after(position, self.now, state=state)
        assert await store.commit(session, position._replace(revision=position.revision + off), new) == (
            found is not None and off == 0
        )
        if found is not None and off == 0:
            found.position = new

    async def end(self, store, number, which):
        session = self.name(number)
        found = self.live.get(session)
        reason = ("deleted", "model-replaced")[number % 2]
        created_at = {"any": None, "this": found.created_at if found else T0, "earlier": T0 - 1}[which]
        ends = which != "earlier"
        assert await store.end(session, reason, self.now, created_at) == (found if ends else None)
        if ends:
            self._finish(session, reason)

    async def expire(self, store):
        due = {session for session, found in self.live.items() if found.expires_at <= self.now}
        assert await expire(store, self.now) == len(due)
        self.ended = {session: was for session, was in self.ended.items() if was.at > self.now - ENDED_SECONDS}
        for session in due:
            self._finish(session, "expired")

    async def evict(self, store, count):
        oldest = sorted(self.live, key=lambda session: self.live[session].position.used_at)[:count]
        assert await store.evict(count, self.now) == len(oldest)
        for session in oldest:
            self._finish(session, "evicted")

    async def page(self, store, number, limit):
        later = sorted(session for session in self.live if session > self.name(number))
        assert await store.page(self.name(number), limit) == [self.live[session] for session in later[:limit]]

    def _finish(self, session, reason):
        if found := self.live.pop(session, None):
            self.ended[session] = Ended(reason, found.position.step, OWNER, self.now)


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(script=st.lists(calls, min_size=5, max_size=40))
@in_loop
async def test_store_equals_a_dictionary(kind, url_of, script):
    async with opened(url_of(kind)) as store:
        model = Model()
        for call in script:
            await model.play(store, call)
