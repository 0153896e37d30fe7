"""LitServe: a worker process for calls alone, and one on /batch that joins up to 16 requests which wait within 2 ms.

Run as `python -m benchmarks.rivals.litserve_server MODELS PORT`.
"""

import sys
from pathlib import Path
from typing import Any

import litserve
from pydantic_core import to_json
from starlette.responses import Response

from benchmarks.rivals.modules import BATCH_WAIT_SECONDS, MAX_BATCH_SIZE, Models, Reply


class RnnAPI(litserve.LitAPI):
    """Sequences and steps on one path; a batch is a list of requests, joined as far as their shapes agree."""

    def __init__(self, models: Path, **options: Any) -> None:
        super().__init__(**options)
        self._directory = models

    def setup(self, device: str) -> None:  # noqa: ARG002
        self._models = Models(self._directory)

    def predict(self, x: Any) -> Any:
        return self._models.answer_together(x) if isinstance(x, list) else self._models.answer(x)

    def encode_response(self, output: Reply) -> Response:
        """The reply in JSON, printed here: nested lists would be pickled on their way to the HTTP process."""
        return Response(to_json(output), media_type="application/json")


if __name__ == "__main__":
    models, port = Path(sys.argv[1]), int(sys.argv[2])
    batching = {"max_batch_size": MAX_BATCH_SIZE, "batch_timeout": BATCH_WAIT_SECONDS, "api_path": "/batch"}
    apis = [RnnAPI(models), RnnAPI(models, **batching)]
    server = litserve.LitServer(apis, accelerator="cpu", workers_per_device=1, timeout=False)
    server.run(host="127.0.0.1", port=port, log_level="warning", access_log=False, generate_client_file=False)
