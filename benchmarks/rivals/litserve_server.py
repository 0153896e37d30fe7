"""LitServe: one LitAPI, one worker process, plain JSON; `--batch` joins up to 16 requests that wait within 2 ms.

Run as `python -m benchmarks.rivals.litserve_server --models DIR --port P [--batch]`.
"""

import argparse
from pathlib import Path
from typing import Any

import litserve
from pydantic_core import to_json
from starlette.responses import Response

from benchmarks.modules import Models, Reply, Request

MAX_BATCH_SIZE = 16
BATCH_TIMEOUT_SECONDS = 0.002


class RnnAPI(litserve.LitAPI):
    """Both calls on /predict; a batch is a list of requests, joined as far as their shapes agree."""

    def __init__(self, models: Path, **options: Any) -> None:
        super().__init__(**options)
        self._directory = models

    def setup(self, device: str) -> None:  # noqa: ARG002
        """Load the weights, in the worker."""
        self._models = Models(self._directory)

    def decode_request(self, request: Request) -> Request:
        """The JSON object as it came."""
        return request

    def batch(self, inputs: list[Request]) -> list[Request]:
        """A batch stays a list: shapes may differ."""
        return inputs

    def predict(self, x: Any) -> Any:
        """One request, or a list of them."""
        return self._models.answer_together(x) if isinstance(x, list) else self._models.answer(x)

    def unbatch(self, output: list[Reply]) -> list[Reply]:
        """The replies, one for each request of the batch."""
        return output

    def encode_response(self, output: Reply) -> Response:
        """The reply as it goes, printed here: nested lists would be pickled on their way to the HTTP process."""
        return Response(to_json(output), media_type="application/json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--batch", action="store_true")
    arguments = parser.parse_args()
    batching = {"max_batch_size": MAX_BATCH_SIZE, "batch_timeout": BATCH_TIMEOUT_SECONDS} if arguments.batch else {}
    api = RnnAPI(arguments.models, **batching)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, timeout=False)
    server.run(host="127.0.0.1", port=arguments.port, log_level="warning", access_log=False, generate_client_file=False)


if __name__ == "__main__":
    main()
