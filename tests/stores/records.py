"""Sessions to be stored."""

from service.stores.interface import Position, SessionRecord, Weights

OWNER = bytes(range(32))
WEIGHTS = Weights("sunspots", "1", b"\x00:\xff" * 10)
T0 = 1_700_000_000.25


def record(session="one", **changes):
    position = Position(
        revision=changes.pop("revision", 0),
        step=changes.pop("step", 0),
        state=changes.pop("state", b"\x00\r\n:\xff" * 20),
        replies=changes.pop("replies", b""),
        used_at=changes.pop("used_at", T0),
    )
    values = {"owner": OWNER, "weights": WEIGHTS, "ttl_seconds": 60.0, "created_at": T0, "initial": b"\xfe\x00" * 3}
    return SessionRecord(id=session, position=position, **{**values, **changes})


async def expire(store, now):
    """End all that are due; gives how many."""
    total, more = 0, True
    while more:
        ended, more = await store.expire(now)
        total += ended
    return total


def after(position, used_at, **changes):
    """The position one step later."""
    return position._replace(revision=position.revision + 1, step=position.step + 1, used_at=used_at, **changes)
