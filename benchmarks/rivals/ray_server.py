"""Ray Serve: one replica, JSON read and written in it; `--batch` joins up to 16 requests that wait within 2 ms.

Replies are Starlette's, printed by pydantic: a plain object would go through FastAPI's encoder, which takes many times
as long for nested lists.

Run as `python -m benchmarks.rivals.ray_server --models DIR --port P [--batch]`; RAY_SERVE_ENABLE_HA_PROXY=1 puts
HAProxy in the place of Ray's own HTTP proxy.
"""

import argparse
import signal
from pathlib import Path

import ray
from pydantic_core import from_json, to_json
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

from benchmarks.modules import Models, Reply
from benchmarks.modules import Request as Body

MAX_BATCH_SIZE = 16
BATCH_WAIT_SECONDS = 0.002
# The default of 5 would let requests wait in the proxy; the documentation says to raise it for replicas that batch.
MAX_ONGOING_REQUESTS = 256
OBJECT_STORE_BYTES = 256 * 2**20


@serve.deployment(num_replicas=1, max_ongoing_requests=MAX_ONGOING_REQUESTS)
class Rnn:
    """Both calls on every path."""

    def __init__(self, models: Path, batch: bool) -> None:
        self._models = Models(models)
        self._batch = batch

    async def __call__(self, request: Request) -> Response:
        """Answer one HTTP request."""
        body: Body = from_json(await request.body())
        reply = await self._together(body) if self._batch else self._models.answer(body)
        return Response(to_json(reply), media_type="application/json")

    @serve.batch(max_batch_size=MAX_BATCH_SIZE, batch_wait_timeout_s=BATCH_WAIT_SECONDS)
    async def _together(self, bodies: list[Body]) -> list[Reply]:
        return self._models.answer_together(bodies)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--batch", action="store_true")
    arguments = parser.parse_args()
    ray.init(
        address="local",
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
        log_to_driver=False,
        _node_ip_address="127.0.0.1",
    )
    serve.start(
        http_options={"host": "127.0.0.1", "port": arguments.port},
        logging_config={"enable_access_log": False, "log_level": "WARNING"},
    )
    serve.run(
        Rnn.bind(arguments.models, arguments.batch), route_prefix="/", logging_config={"enable_access_log": False}
    )
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
