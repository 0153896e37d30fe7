"""Whether requests should come here."""

from dataclasses import dataclass

from service.api.draining import Draining
from service.stores.interface import SessionStore


@dataclass(frozen=True, slots=True)
class Readiness:
    """`starting` says what the start waits for, empty once it is over."""

    draining: Draining
    store: SessionStore
    starting: list[str]

    def reasons(self) -> list[str]:
        """Why the process is not ready; empty if it is."""
        lost = ["the file of the session store was removed, replaced or emptied"] if self.store.lost else []
        return ["shutting down"] * self.draining.announced + lost + self.starting
