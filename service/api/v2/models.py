"""What clients of the Open Inference Protocol read of the service and its models, and how they load and unload them."""

from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Response
from fastapi import Request as Routed
from pydantic import BaseModel, Field, create_model

from service import __version__
from service.api.application import request_of
from service.api.bodies import Bodies, Incoming
from service.api.metrics import Sampler
from service.api.negotiation import JSON
from service.api.requests import validate
from service.api.routes import admin_only
from service.api.stepping import steppable
from service.api.v2.requests import STEP, Signature, Tensor, signature
from service.api.v2.statistics import figures, statistics
from service.errors import ModelFailed
from service.serving.inference import PART_ROWS
from service.serving.registry import ModelVersion, Registry
from service.wire import open_inference

NAME, TAG = "rnn-service", "open inference protocol"
EXTENSIONS = ["binary_tensor_data", "model_configuration", "model_repository", "parameters", "statistics"]

_View = Mapping[str, Any]
_Server = create_model("ServerMetadata", name=str, version=str, extensions=list[str])
_Ready = create_model("Ready", name=(str, ""), ready=bool, live=(bool, True))
_Tensor = create_model("TensorMetadata", name=str, datatype=str, shape=list[int])
_Model = create_model(
    "ModelMetadata", name=str, versions=list[str], platform=str, inputs=list[_Tensor], outputs=list[_Tensor]
)
_ConfigTensor = create_model("ConfigTensor", name=str, data_type=str, dims=list[int], optional=(bool, False))
_Config = create_model(
    "ModelConfiguration",
    name=str,
    backend=str,
    max_batch_size=int,
    input=list[_ConfigTensor],
    output=list[_ConfigTensor],
    sequence_batching=(dict[str, int] | None, None),
)
_Entry = create_model("RepositoryEntry", name=str, version=str, state=Literal["READY", "UNAVAILABLE"], reason=str)
_Statistics = create_model("ModelStatistics", model_stats=list[dict[str, Any]])
_Loaded = create_model("Loaded", name=str, load=bool)


class IndexRequest(BaseModel, extra="forbid", strict=True):
    """What is wanted of the index: all versions, or those that can serve."""

    ready: bool = False


class LoadRequest(BaseModel, extra="forbid", strict=True):
    """A model is loaded as its folder has it: no config and no files are taken."""

    parameters: dict[Literal["unload_dependents"], bool] = Field({}, description="It has no effect.")


def described_router(registry: Registry, sampler: Sampler, idle_seconds: float) -> APIRouter:
    """The routes that describe models; idle_seconds is how long sequences live after a step."""
    router = APIRouter(prefix="/v2", tags=[TAG])

    @router.get("/models/stats", response_model=_Statistics, operation_id="v2_stats", summary="Statistics")
    async def stats(model: str | None = None, version: str | None = None) -> _View:
        if model is not None:
            served(registry, model, version)
        found = figures(sampler.collected())
        versions = [(one["name"], one["version"]) for one in entries(registry)]
        asked = [one for one in versions if model in (None, one[0]) and version in (None, one[1])]
        return {"model_stats": [statistics(found, *one) for one in asked]}

    async def model_ready(response: Response, model: str, version: str | None = None) -> _View:
        try:
            served(registry, model, version)
        except ModelFailed:
            response.status_code = 503
        return {"name": model, "ready": response.status_code != 503}

    async def metadata(model: str, version: str | None = None) -> _View:
        found, tensors = served(registry, model, version)
        return {
            "name": model,
            "versions": list(registry.model(found.name).versions) if version is None else [version],
            "platform": f"{NAME}_{found.spec.kind}",
            "inputs": [_metadata(name, tensor) for name, tensor in tensors.inputs.items()],
            "outputs": [_metadata(name, tensor) for name, tensor in tensors.outputs.items()],
        }

    async def config(model: str, version: str | None = None) -> _View:
        found = _configuration(model, served(registry, model, version)[1])
        if model.endswith(STEP):
            found["sequence_batching"] = {"max_sequence_idle_microseconds": round(idle_seconds * 1e6)}
        return found

    for path, kind in ("/models/{model}", "model"), ("/models/{model}/versions/{version}", "version"):
        for end, view, call, what in (
            ("/ready", _Ready, model_ready, "Can this model serve?"),
            ("", _Model, metadata, "What a model takes and gives"),
            ("/stats", _Statistics, stats, "Statistics of a model"),
            ("/config", _Config, config, "A model as Triton's configuration has it"),
        ):
            operation = f"v2_{kind}_{call.__name__.removeprefix('model_')}"
            describe = router.get(
                path + end, response_model=view, response_model_exclude_none=True, operation_id=operation, summary=what
            )
            describe(call)
    return router


def service_router(registry: Registry, bodies: Bodies, unready: Callable[[], list[str]]) -> APIRouter:
    """The routes about the whole service; `unready` gives the reasons for not being ready, none if it is."""
    router = APIRouter(prefix="/v2", tags=[TAG])

    @router.get("", response_model=_Server, operation_id="v2_server", summary="What answers here")
    async def server() -> _View:
        return {"name": NAME, "version": __version__, "extensions": EXTENSIONS}

    @router.get("/health/live", response_model=_Ready, operation_id="v2_live", summary="Is the process alive?")
    @router.get("/health/ready", response_model=_Ready, operation_id="v2_ready", summary="Should requests come here?")
    async def ready(routed: Routed, response: Response) -> _View:
        is_ready = not unready()
        if not is_ready and routed.url.path.endswith("ready"):
            response.status_code = 503
        return {"name": NAME, "ready": is_ready}

    async def posted(routed: Routed) -> Any:
        """The JSON of a body; clients send none, and any Content-Type."""
        request = request_of(routed.scope)
        bodies.refuse_too_large(request)
        body = await bodies.read(request, Incoming(request, routed.receive))
        return open_inference.cut(body, None).document if body.strip() else {}

    takes_index, takes_load = (
        {"requestBody": {"content": {JSON: {"schema": kind.model_json_schema()}}}}
        for kind in (IndexRequest, LoadRequest)
    )

    @router.post(
        "/repository/index",
        response_model=list[_Entry],
        operation_id="v2_index",
        summary="All models",
        openapi_extra=takes_index,
    )
    async def index(body: Annotated[Any, Depends(posted)]) -> list[_View]:
        only_ready = validate(IndexRequest, body).ready
        return [entry for entry in entries(registry) if entry["state"] == "READY" or not only_ready]

    @router.post(
        "/repository/models/{model}/{call}",
        response_model=_Loaded,
        operation_id="v2_load",
        summary="Read a model's folder again and load it, or free its memory",
        openapi_extra=takes_load,
        dependencies=[Depends(admin_only)],
    )
    async def load(model: str, call: Literal["load", "unload"], body: Annotated[Any, Depends(posted)]) -> _View:
        """The next request loads again what was unloaded. While sessions run on a version that is refused: 409."""
        validate(LoadRequest, body)
        name = model.removesuffix(STEP)
        if call == "unload":
            registry.unload(name)
        elif found := (await registry.reload(name)).serving():
            await registry.engine(found)
        return {"name": model, "load": call == "load"}

    return router


def entries(registry: Registry) -> Iterator[dict[str, Any]]:
    """All versions of all models, each also by its single steps if it can be stepped."""
    for model in registry.models():
        if not model.versions:
            yield {"name": model.name, "version": "", "state": "UNAVAILABLE", "reason": model.failure or ""}
        for name in (model.name, model.name + STEP):
            for version in model.versions.values():
                if name == model.name or not version.spec.bidirectional:
                    failure = model.failure or version.failure
                    state = "UNAVAILABLE" if failure else "READY"
                    yield {"name": name, "version": version.version, "state": state, "reason": failure or ""}


def served(registry: Registry, name: str, version: str | None) -> tuple[ModelVersion, Signature]:
    """The version that a name of the protocol means, and its tensors. Raises as `Registry.resolve`, or NotSteppable."""
    found, by_step = registry.resolve(name.removesuffix(STEP), version), name.endswith(STEP)
    return found, signature(steppable(found).spec if by_step else found.spec, by_step=by_step)


def _metadata(name: str, tensor: Tensor) -> dict[str, Any]:
    return {"name": name, "datatype": tensor.datatype, "shape": tensor.shape}


def _configuration(name: str, tensors: Signature) -> dict[str, Any]:
    """A model as Triton's configuration has it; of whole sequences the batch is an axis like the others."""
    batch = PART_ROWS if name.endswith(STEP) else 0  # `lengths` has no axis but the batch, which Triton does not take
    inputs, outputs = (
        [
            {"name": key, "data_type": f"TYPE_{one.datatype}", "dims": one.shape[batch > 0 :]}
            for key, one in some.items()
        ]
        for some in tensors
    )
    optional = [one | {"optional": one["name"] != "inputs"} for one in inputs]
    return {"name": name, "backend": NAME, "max_batch_size": batch, "input": optional, "output": outputs}
