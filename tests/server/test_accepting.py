"""Workers that share a listening socket share its connections."""

import asyncio
import socket
from types import SimpleNamespace

from service.server.accepting import Acceptor
from tests.loop import in_loop


def worker():
    """The connections of a worker, and what makes its protocols."""
    connections = set()

    class Connection(asyncio.Protocol):
        server_state = SimpleNamespace(connections=connections)

        def connection_made(self, transport):
            connections.add(transport)

    return connections, Connection


@in_loop
async def test_two_workers_share_connections():
    loop = asyncio.get_running_loop()
    workers = [worker() for _ in range(2)]
    with socket.create_server(("127.0.0.1", 0), backlog=99) as listener:
        acceptors = [Acceptor(loop, listener.dup(), factory, 99) for _, factory in workers]
        clients = [socket.create_connection(listener.getsockname()) for _ in range(64)]
        while sum(len(connections) for connections, _ in workers) < 64:
            await asyncio.sleep(0.001)
        assert min(len(connections) for connections, _ in workers) >= 16
        for acceptor in acceptors:
            acceptor.close()
            await acceptor.wait_closed()
            acceptor._listener.close()
        for transport in set().union(*(connections for connections, _ in workers)):
            transport.abort()
        for client in clients:
            client.close()
        await asyncio.sleep(0)
