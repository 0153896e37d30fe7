"""The endpoint that most people write: FastAPI, nested lists, `torch.tensor`, `nn.RNN`, `.tolist()`.

The yardstick of every ratio: written straightforwardly, with nothing done to make it slow. It serves the same model
folders and takes the same JSON as the service. Run as `python -m benchmarks.naive sync|async --models DIR --port P`.
"""

import argparse
from pathlib import Path
from typing import Literal

import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from benchmarks.modules import Modules

Variant = Literal["sync", "async"]


class ForwardRequest(BaseModel):
    """`inputs` (B, T, I) and `h0` (1, B, H)."""

    model: str
    inputs: list[list[list[float]]]
    h0: list[list[list[float]]]


class ForwardReply(BaseModel):
    """`outputs` (B, T, H) and `h_n` (1, B, H)."""

    model: str
    outputs: list[list[list[float]]]
    h_n: list[list[list[float]]]


class StepRequest(BaseModel):
    """`inputs` (B, I) and `h` (B, H)."""

    model: str
    inputs: list[list[float]]
    h: list[list[float]]


class StepReply(BaseModel):
    """`outputs` and `h`, both (B, H)."""

    model: str
    outputs: list[list[float]]
    h: list[list[float]]


class Model(Modules):
    """One folder's weights behind both calls."""

    @torch.inference_mode()
    def forward(self, request: ForwardRequest) -> ForwardReply:
        """Run whole sequences."""
        outputs, h_n = self.rnn(torch.tensor(request.inputs), torch.tensor(request.h0))
        return ForwardReply(model=self.name, outputs=outputs.tolist(), h_n=h_n.tolist())

    @torch.inference_mode()
    def step(self, request: StepRequest) -> StepReply:
        """Run one step."""
        h = self.cell(torch.tensor(request.inputs), torch.tensor(request.h)).tolist()
        return StepReply(model=self.name, outputs=h, h=h)


def create_app(models: Path, variant: Variant) -> FastAPI:
    """The app with `def` endpoints (a thread pool runs them) or `async def` ones (the event loop does)."""
    app = FastAPI()
    loaded = {folder.name: Model(folder) for folder in models.iterdir()}

    @app.get("/health/ready")
    def ready() -> str:
        return "ready"

    def forward(request: ForwardRequest) -> ForwardReply:
        return loaded[request.model].forward(request)

    def step(request: StepRequest) -> StepReply:
        return loaded[request.model].step(request)

    async def forward_async(request: ForwardRequest) -> ForwardReply:
        return forward(request)

    async def step_async(request: StepRequest) -> StepReply:
        return step(request)

    asynchronous = variant == "async"
    app.post("/rnn/forward", response_model=ForwardReply)(forward_async if asynchronous else forward)
    app.post("/cell/step", response_model=StepReply)(step_async if asynchronous else step)
    return app


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("variant", choices=["sync", "async"])
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    arguments = parser.parse_args()
    app = create_app(arguments.models, arguments.variant)
    uvicorn.run(app, host="127.0.0.1", port=arguments.port, access_log=False, log_level="warning")


if __name__ == "__main__":
    main()
