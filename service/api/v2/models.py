"""What clients of the Open Inference Protocol read of the service and its models."""

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Response

from service import __version__
from service.api.stepping import steppable
from service.api.v2.requests import STEP, Signature, TensorSpec, signature
from service.api.v2.views import (
    NAME,
    ConfigInput,
    ConfigTensor,
    InferConfig,
    Live,
    ModelMetadata,
    Ready,
    ServerMetadata,
    TensorMetadata,
)
from service.errors import ModelFailed
from service.serving.registry import ModelVersion, Registry

EXTENSIONS = [
    "binary_tensor_data",
    "parameters",
    "model_configuration",
    "model_repository",
    "model_repository(unload_dependents)",
]


def v2_router(registry: Registry, unready: Callable[[], list[str]]) -> APIRouter:
    """The routes but for infer; `unready` gives the reasons for not being ready, none if it is."""
    router = APIRouter(prefix="/v2", tags=["open inference protocol"])
    one = "/models/{model}", "/models/{model}/versions/{version}"

    def get(path: str, operation: str, summary: str, **options: Any) -> Callable[..., Any]:
        return router.get(path, operation_id=f"v2_{operation}", summary=summary, **options)

    @get("", "server_metadata", "What answers here")
    async def server() -> ServerMetadata:
        return ServerMetadata(name=NAME, version=__version__, extensions=EXTENSIONS)

    @get("/health/live", "server_live", "Is the process alive?")
    async def live() -> Live:
        return Live(live=True)

    @get("/health/ready", "server_ready", "Should requests come here?", responses={503: {"model": Ready}})
    async def ready(response: Response) -> Ready:
        return _ready(response, not unready())

    async def model_ready(response: Response, model: str, version: str | None = None) -> Ready:
        try:
            found = _served(registry, model, version)
        except ModelFailed:
            return _ready(response, False, model)
        return _ready(response, not found.failure, model)

    async def metadata(model: str, version: str | None = None) -> ModelMetadata:
        found = _served(registry, model, version)
        tensors = _signature(found, model)
        return ModelMetadata(
            name=model,
            versions=list(registry.model(found.name).versions) if version is None else [found.version],
            platform=f"{NAME}_{found.spec.kind}",
            inputs=[_metadata(one) for one in tensors.inputs.values()],
            outputs=[_metadata(one) for one in tensors.outputs.values()],
        )

    async def config(model: str, version: str | None = None) -> InferConfig:
        tensors = _signature(_served(registry, model, version), model)
        return InferConfig(
            name=model,
            input=[ConfigInput(**_config(one), optional=one.optional) for one in tensors.inputs.values()],
            output=[ConfigTensor(**_config(one)) for one in tensors.outputs.values()],
        )

    for path, suffix in zip(one, ("", "_version"), strict=True):
        unavailable: dict[int | str, Any] = {503: {"model": Ready}}
        get(f"{path}/ready", f"model{suffix}_ready", "Can this model serve?", responses=unavailable)(model_ready)
        get(path, f"model{suffix}_metadata", "What a model takes and gives")(metadata)
        get(f"{path}/config", f"model{suffix}_config", "A model as Triton's configuration has it")(config)

    return router


def _served(registry: Registry, name: str, version: str | None) -> ModelVersion:
    """The version that a name of the protocol means. Raises as `Registry.resolve`, or NotSteppable."""
    found = registry.resolve(name.removesuffix(STEP), version)
    return steppable(found) if name.endswith(STEP) else found


def _signature(model: ModelVersion, name: str) -> Signature:
    return signature(model.spec, by_step=name.endswith(STEP))


def _ready(response: Response, ready: bool, name: str | None = None) -> Ready:
    if not ready:
        response.status_code = 503
    return Ready(ready=ready, name=name)


def _metadata(tensor: TensorSpec) -> TensorMetadata:
    return TensorMetadata(name=tensor.name, datatype=tensor.datatype, shape=list(tensor.shape))


def _config(tensor: TensorSpec) -> dict[str, Any]:
    return {"name": tensor.name, "data_type": f"TYPE_{tensor.datatype}", "dims": list(tensor.shape)}
