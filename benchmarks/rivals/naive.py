"""The endpoint that most people write: FastAPI, nested lists, `torch.tensor`, `nn.RNN`, `.tolist()`.

The yardstick of every ratio: written straightforwardly, with nothing done to make it slow. Run as
`python -m benchmarks.rivals.naive sync|async MODELS PORT`.
"""

import sys
from pathlib import Path

import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from benchmarks.rivals.modules import Modules


class ForwardRequest(BaseModel):
    """`inputs` (B,T,I) and `h0` (1,B,H)."""

    model: str
    inputs: list[list[list[float]]]
    h0: list[list[list[float]]]


class ForwardReply(BaseModel):
    """`outputs` (B,T,H) and `h_n` (1,B,H)."""

    model: str
    outputs: list[list[list[float]]]
    h_n: list[list[list[float]]]


class StepRequest(BaseModel):
    """`inputs` (B,I) and `h` (B,H)."""

    model: str
    inputs: list[list[float]]
    h: list[list[float]]


class StepReply(BaseModel):
    """`outputs` and `h`, both (B,H)."""

    model: str
    outputs: list[list[float]]
    h: list[list[float]]


def create_app(models: Path, *, asynchronous: bool) -> FastAPI:
    """The app with `def` endpoints (a thread pool runs them) or `async def` ones (the event loop does)."""
    app = FastAPI()
    loaded = {folder.name: Modules(folder) for folder in models.iterdir()}

    @app.get("/health/ready")
    def ready() -> str:
        return "ready"

    @torch.inference_mode()
    def forward(request: ForwardRequest) -> ForwardReply:
        outputs, h_n = loaded[request.model].rnn(torch.tensor(request.inputs), torch.tensor(request.h0))
        return ForwardReply(model=request.model, outputs=outputs.tolist(), h_n=h_n.tolist())

    @torch.inference_mode()
    def step(request: StepRequest) -> StepReply:
        h = loaded[request.model].cell(torch.tensor(request.inputs), torch.tensor(request.h)).tolist()
        return StepReply(model=request.model, outputs=h, h=h)

    async def forward_async(request: ForwardRequest) -> ForwardReply:
        return forward(request)

    async def step_async(request: StepRequest) -> StepReply:
        return step(request)

    app.post("/rnn/forward", response_model=ForwardReply)(forward_async if asynchronous else forward)
    app.post("/cell/step", response_model=StepReply)(step_async if asynchronous else step)
    return app


if __name__ == "__main__":
    app = create_app(Path(sys.argv[2]), asynchronous=sys.argv[1] == "async")
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[3]), access_log=False, log_level="warning")
