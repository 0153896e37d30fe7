"""Ray Serve: one replica, JSON read and written in it; /batch joins up to 16 requests that wait within 2 ms.

Replies are Starlette's, printed by pydantic: a plain object would go through FastAPI's encoder, which takes many times
as long for nested lists. Run as `python -m benchmarks.rivals.ray_server MODELS PORT`, with
RAY_SERVE_ENABLE_HA_PROXY=1 for HAProxy in the place of Ray's own, slower HTTP proxy.
"""

import signal
import sys
from pathlib import Path

import ray
from pydantic_core import from_json, to_json
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

from benchmarks.rivals.modules import BATCH_WAIT_SECONDS, MAX_BATCH_SIZE, Models, Reply
from benchmarks.rivals.modules import Request as Body

# The default of 5 would let requests wait in the proxy; the documentation says to raise it for replicas that batch.
MAX_ONGOING_REQUESTS = 256
OBJECT_STORE_BYTES = 256 * 2**20


@serve.deployment(num_replicas=1, max_ongoing_requests=MAX_ONGOING_REQUESTS)
class Rnn:
    """Sequences and steps on every path."""

    def __init__(self, models: Path) -> None:
        self._models = Models(models)

    async def __call__(self, request: Request) -> Response:
        body: Body = from_json(await request.body())
        reply = await self._together(body) if request.url.path == "/batch" else self._models.answer(body)
        return Response(to_json(reply), media_type="application/json")

    @serve.batch(max_batch_size=MAX_BATCH_SIZE, batch_wait_timeout_s=BATCH_WAIT_SECONDS)
    async def _together(self, bodies: list[Body]) -> list[Reply]:
        return self._models.answer_together(bodies)


def serve_until_stopped(application: serve.Application, port: int) -> None:
    """Run an application on a Ray of its own until a signal comes."""
    more = {"include_dashboard": False, "log_to_driver": False, "_node_ip_address": "127.0.0.1"}
    ray.init(address="local", object_store_memory=OBJECT_STORE_BYTES, **more)
    quiet = {"enable_access_log": False, "log_level": "WARNING"}
    serve.start(http_options={"host": "127.0.0.1", "port": port}, logging_config=quiet)
    serve.run(application, route_prefix="/", logging_config=quiet)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    serve_until_stopped(Rnn.bind(Path(sys.argv[1])), int(sys.argv[2]))
