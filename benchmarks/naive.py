"""The endpoint that most people write: FastAPI, nested lists, `torch.tensor`, `nn.RNN`, `.tolist()`.

The yardstick of every ratio: written straightforwardly, with nothing done to make it slow. It serves the same model
folders and takes the same JSON as the service; its WebSocket keeps the state in a variable.
Run as `python -m benchmarks.naive sync|async --models DIR --port P`.
"""

import argparse
import json
from contextlib import suppress
from pathlib import Path
from typing import Literal

import torch
import uvicorn
from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from pydantic import BaseModel
from torch import Tensor

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

    @torch.inference_mode()
    def step_of_stream(self, inputs: list[float], h: Tensor) -> Tensor:
        """One step of a stream: inputs (I) and h (1, H) give h (1, H)."""
        return self.cell(torch.tensor([inputs]), h)

    @torch.inference_mode()
    def steps_of_stream(self, data: bytes, h: Tensor) -> tuple[bytes, Tensor]:
        """Steps of a stream as float32 values: inputs (k, I) and h (1, H) give outputs (k, H) and h."""
        inputs = torch.frombuffer(bytearray(data), dtype=torch.float32).view(1, -1, self.cell.input_size)
        outputs, h_n = self.rnn(inputs, h[None])
        return outputs.numpy().tobytes(), h_n[0]


async def step_stream(socket: WebSocket, model: Model) -> None:
    """Answer a stream's messages, text or binary, until it ends."""
    h = torch.zeros(1, model.cell.hidden_size)
    while (message := await socket.receive())["type"] == "websocket.receive":
        if message.get("text") is not None:
            h = model.step_of_stream(json.loads(message["text"]), h)
            await socket.send_json({"outputs": h[0].tolist()})
        else:
            outputs, h = model.steps_of_stream(message["bytes"], h)
            await socket.send_bytes(outputs)


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

    @app.websocket("/cell/stream")
    async def stream(socket: WebSocket) -> None:
        await socket.accept()
        with suppress(WebSocketDisconnect):
            await step_stream(socket, loaded[(await socket.receive_json())["model"]])

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
