"""What clients of the Open Inference Protocol read of the service and its models, and how they load and unload them."""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Response
from fastapi import Request as Routed
from pydantic import BaseModel, Field

from service import __version__
from service.api.administration import Administration
from service.api.application import incoming_of
from service.api.bodies import Bodies
from service.api.metrics import Sampler
from service.api.negotiation import JSON
from service.api.readiness import Readiness
from service.api.requests import validate
from service.api.routes import admin_only
from service.api.stepping import steppable
from service.api.v2.requests import STEP, Signature, signature
from service.api.v2.statistics import figures, statistics
from service.errors import ModelFailed
from service.serving.inference import PART_ROWS
from service.serving.registry import ModelVersion, Registry
from service.wire import open_inference

NAME, TAG = "rnn-service", "open inference protocol"
EXTENSIONS = [
    *("binary_tensor_data", "model_configuration", "model_repository", "parameters"),
    *("sequence", "sequence(string_id)", "statistics"),
]

_Name = Annotated[str, Field(description="What it is called.")]
_Version = Annotated[str, Field(description="A whole number as a string.")]
_Shape = Annotated[Sequence[int], Field(description="Its axes, batch first; -1 is one of any size.")]


class Server(BaseModel):
    """What answers here."""

    name: _Name = NAME
    version: str = Field(__version__, description="The service's.")
    extensions: list[str] = Field(EXTENSIONS, description="Parts of the protocol that it offers.")


class Ready(BaseModel):
    """Whether the service, or a model, can do its work."""

    name: _Name = NAME
    ready: bool = Field(description="Whether requests should come here.")
    live: bool = Field(True, description="Whether the process is alive.")


class TensorMetadata(BaseModel):
    """A tensor that a model takes or gives."""

    name: _Name
    datatype: str = Field(description="FP32 or INT64.")
    shape: _Shape


class ModelMetadata(BaseModel):
    """A model as the protocol describes it."""

    name: _Name
    versions: list[str] = Field(description="All of them, oldest first.")
    platform: str = Field(description="What runs it, and its kind.")
    inputs: list[TensorMetadata] = Field(description="What it takes.")
    outputs: list[TensorMetadata] = Field(description="What it gives.")


class IndexEntry(BaseModel):
    """A version of a model."""

    name: _Name
    version: _Version
    state: Literal["READY", "UNAVAILABLE"] = Field(description="Whether it can serve.")
    reason: str = Field(description="Why it cannot.")


class IndexRequest(BaseModel, extra="forbid", strict=True):
    """What is wanted of the index."""

    ready: bool = Field(False, description="Only versions that can serve.")


class LoadRequest(BaseModel, extra="forbid", strict=True):
    """A model is loaded as its folder has it: no config and no files are taken."""

    parameters: dict[Literal["unload_dependents"], bool] = Field({}, description="It has no effect.")


def _version(routed: Routed) -> str | None:
    return routed.path_params.get("version")


Version = Annotated[str | None, Depends(_version)]
"""Of a path that has one."""


def v2_models_router(registry: Registry, sampler: Sampler, idle_seconds: float) -> APIRouter:
    """The routes that describe models; idle_seconds is how long a sequence lives after a step."""
    router = APIRouter(prefix="/v2/models", tags=[TAG])

    @router.get("/stats", operation_id="v2_stats", summary="Statistics of all models")
    async def all_stats() -> dict[str, Any]:
        return stats(None)

    async def ready(response: Response, model: str, version: Version) -> Ready:
        ready = await can_serve(registry, model, version)
        response.status_code = 200 if ready else 503
        return Ready(name=model, ready=ready)

    async def metadata(model: str, version: Version) -> ModelMetadata:
        found, tensors = described(registry, model, version)
        inputs, outputs = (
            [TensorMetadata(name=name, **one._asdict()) for name, one in some.items()] for some in tensors
        )
        versions = list(registry.model(found.name).versions) if version is None else [version]
        platform = f"{NAME}_{found.spec.kind}"
        return ModelMetadata(name=model, versions=versions, platform=platform, inputs=inputs, outputs=outputs)

    async def config(model: str, version: Version) -> dict[str, Any]:
        """The batch comes before `dims`."""
        found = _configuration(model, described(registry, model, version)[1])
        if model.endswith(STEP):
            found["sequence_batching"] = {"max_sequence_idle_microseconds": round(idle_seconds * 1e6)}
        return found

    async def model_stats(model: str, version: Version) -> dict[str, Any]:
        resolve(registry, model, version)
        return stats(model, version)

    def stats(model: str | None, version: str | None = None) -> dict[str, Any]:
        counted = figures(sampler.collected())
        found = [(one.name, one.version) for one in index_entries(registry) if model in (None, one.name)]
        return {"model_stats": [statistics(counted, *one) for one in found if version in (None, one[1])]}

    for path, kind in ("/{model}", "model"), ("/{model}/versions/{version}", "version"):
        router.get(f"{path}/ready", operation_id=f"v2_{kind}_ready", summary="Can this model serve?")(ready)
        router.get(path, operation_id=f"v2_{kind}", summary="What a model takes and gives")(metadata)
        router.get(f"{path}/config", operation_id=f"v2_{kind}_config", summary="A model as Triton has it")(config)
        router.get(f"{path}/stats", operation_id=f"v2_{kind}_stats", summary="Statistics of a model")(model_stats)
    return router


def v2_service_router(
    registry: Registry, administration: Administration, bodies: Bodies, readiness: Readiness
) -> APIRouter:
    """The routes about the whole service."""
    router = APIRouter(prefix="/v2", tags=[TAG])

    @router.get("", operation_id="v2_server", summary="What answers here")
    async def server() -> Server:
        return Server()

    @router.get("/health/live", operation_id="v2_live", summary="Is the process alive?")
    async def live() -> Ready:
        return Ready(ready=not readiness.reasons())

    @router.get("/health/ready", operation_id="v2_ready", summary="Should requests come here?")
    async def ready(response: Response) -> Ready:
        response.status_code = 503 if readiness.reasons() else 200
        return Ready(ready=response.status_code == 200)

    async def posted(routed: Routed) -> Any:
        """The JSON of a body; clients send none, and any Content-Type."""
        incoming = incoming_of(routed.scope)
        bodies.refuse_too_large(incoming.request)
        body = await bodies.read(incoming.request, incoming)
        return open_inference.cut(body, None).document if body.strip() else {}

    def takes(kind: type[BaseModel]) -> dict[str, Any]:
        return {"requestBody": {"content": {JSON: {"schema": kind.model_json_schema()}}}}

    @router.post("/repository/index", operation_id="v2_index", summary="All models", openapi_extra=takes(IndexRequest))
    async def index(body: Annotated[Any, Depends(posted)]) -> list[IndexEntry]:
        only_ready = validate(IndexRequest, body).ready
        return [entry for entry in index_entries(registry) if entry.state == "READY" or not only_ready]

    admin: dict[str, Any] = {"dependencies": [Depends(admin_only)], "openapi_extra": takes(LoadRequest)}

    @router.post("/repository/models/{model}/load", operation_id="v2_load", summary="Load a model", **admin)
    async def load(model: str, body: Annotated[Any, Depends(posted)]) -> Ready:
        """Its folder is read again."""
        validate(LoadRequest, body)
        loaded, _ = await administration.reload(model.removesuffix(STEP))
        if found := loaded.serving():
            await registry.engine(found)
        return Ready(name=model, ready=True)

    @router.post("/repository/models/{model}/unload", operation_id="v2_unload", summary="Free its memory", **admin)
    async def unload(model: str, body: Annotated[Any, Depends(posted)]) -> Ready:
        """The next request loads it again. While sessions run on a version: 409, and nothing is freed."""
        validate(LoadRequest, body)
        unloaded, _ = await administration.unload(model.removesuffix(STEP))
        found = unloaded.serving()
        return Ready(name=model, ready=found is not None and not found.failure and not found.in_doubt)

    return router


def index_entries(registry: Registry) -> Iterator[IndexEntry]:
    """All versions of all models, each also by its single steps if it can be stepped."""
    for model in registry.models():
        if not model.versions:
            yield IndexEntry(name=model.name, version="", state="UNAVAILABLE", reason=model.failure or "")
        for name in (model.name, model.name + STEP):
            for version in model.versions.values():
                if name == model.name or not version.spec.bidirectional:
                    failure = model.failure or version.failure
                    state: Literal["READY", "UNAVAILABLE"] = "UNAVAILABLE" if failure else "READY"
                    yield IndexEntry(name=name, version=version.version, state=state, reason=failure or "")


def resolve(registry: Registry, name: str, version: str | None) -> ModelVersion:
    """The version that a name of the protocol means. Raises as `Registry.resolve`, or NotSteppable."""
    found = registry.resolve(name.removesuffix(STEP), version)
    return steppable(found) if name.endswith(STEP) else found


async def can_serve(registry: Registry, name: str, version: str | None) -> bool:
    """Whether a model can serve; if its weights could not be loaded, they are tried again. Raises as `resolve`."""
    try:
        found = resolve(registry, name, version)
        if found.in_doubt:
            await registry.engine(found)
    except ModelFailed:
        return False
    return True


def described(registry: Registry, name: str, version: str | None) -> tuple[ModelVersion, Signature]:
    """As `resolve`, with its tensors, but for the states of steps: perf_analyzer would send them in sequences, too."""
    found, by_step = resolve(registry, name, version), name.endswith(STEP)
    tensors = signature(found.spec, by_step=by_step)
    return found, tensors._replace(inputs={"inputs": tensors.inputs["inputs"]}) if by_step else tensors


def _configuration(name: str, tensors: Signature) -> dict[str, Any]:
    config: dict[str, Any] = {"name": name, "backend": NAME, "max_batch_size": PART_ROWS}
    for side, some in zip(("input", "output"), tensors, strict=True):
        config[side] = [
            {"name": key, "data_type": f"TYPE_{one.datatype}", "dims": one.shape[1:]} for key, one in some.items()
        ]
    for one in config["input"]:
        one["optional"] = one["name"] != "inputs"
    return config
