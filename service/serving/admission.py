"""How many requests the process takes on at once, decided before a body is read."""

from collections import Counter
from collections.abc import Hashable
from math import ceil

from service.errors import ClientFull, ServiceFull

CLIENT_SHARE = 0.75
"""Of all places, what one client may take: others always find some."""


class Admission:
    """Requests under way, from their headers to the end of their reply."""

    def __init__(self, max_requests: int) -> None:
        self._max_requests = max_requests
        self._max_of_client = ceil(CLIENT_SHARE * max_requests)
        self._of_client: Counter[str] = Counter()
        self._clients: dict[Hashable, str] = {}

    def enter(self, request: Hashable, client: str) -> None:
        """Take a request on until it leaves. Raises ServiceFull, or ClientFull if only this client has too many."""
        under_way = len(self._clients)
        if under_way >= self._max_requests:
            raise ServiceFull(f"{under_way} requests are under way; try again in a second")
        if (held := self._of_client[client]) >= self._max_of_client:
            raise ClientFull(f"{held} of this client's requests are under way; try again in a second")
        self._clients[request] = client
        self._of_client[client] += 1

    def leave(self, request: Hashable) -> None:
        """Give a request's place back, if it has one."""
        client = self._clients.pop(request, None)
        if client is not None:
            self._of_client[client] -= 1
            if not self._of_client[client]:
                del self._of_client[client]
