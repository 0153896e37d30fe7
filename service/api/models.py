"""GET /models and its admin calls: what can be called, and in what state it is."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, Field

from service.api.administration import Administration
from service.api.replies import View
from service.api.routes import admin_only
from service.serving.registry import Model, ModelVersion, Registry
from service.spec import Kind, ModelSpec, Nonlinearity, Pooling, WeightsDtype

VersionState = Literal["loaded", "available", "failed"]


class TensorView(BaseModel):
    """An array that a call takes or gives."""

    name: str = Field(description="Its field in requests or replies.")
    dtype: Literal["float32", "int64"] = Field(description="int64: token ids.")
    shape: list[str | int] = Field(description="Its axes: B rows, T steps, or a size.")


class VersionView(View):
    """One version of a model."""

    version: str = Field(description="A whole number as a string.")
    state: VersionState = Field(description="loaded; available: loaded at first use, by each worker; or failed.")
    reason: str | None = Field(None, description="Why it failed.")
    engine: str | None = Field(None, description="What runs it, once it is loaded.")
    sessions: int = Field(0, description="Live sessions that run on it.")
    draining: bool = Field(False, description="Whether it opens no new sessions.")
    replaced: bool = Field(False, description="Whether other weights serve under its number; kept for its sessions.")
    loaded_bytes: int = Field(0, description="Memory that its weights take, in bytes.")
    notes: list[str] = Field(default_factory=list, description="What was done to the weights to load them.")


class ModelView(View):
    """One model of the repository; a broken one has a reason and no sizes."""

    name: str = Field(description="What requests call it.")
    state: VersionState = Field(description="State of the version that requests get if they name none.")
    reason: str | None = Field(None, description="Why it failed.")
    default_version: str | None = Field(None, description="The version of requests that name none.")
    versions: list[VersionView] = Field(default_factory=list, description="All versions, oldest first.")
    kind: Kind | None = Field(None, description="rnn, gru or lstm.")
    input_size: int | None = Field(None, description="I.")
    hidden_size: int | None = Field(None, description="H.")
    num_layers: int | None = Field(None, description="L.")
    nonlinearity: Nonlinearity | None = Field(None, description="Activation of an rnn.")
    bias: bool | None = Field(None, description="Whether the layers have biases.")
    bidirectional: bool | None = Field(None, description="D = 2 if true.")
    proj_size: int | None = Field(None, description="LSTM only: width of the projection, 0 for none.")
    pooling: Pooling = Field("none", description="What the head reads: each step's output, or one vector of each row.")
    out_features: int | None = Field(None, description="O of the head; null if there is none.")
    num_embeddings: int | None = Field(None, description="How many token ids there are; null: it takes vectors.")
    front: list[str] = Field(default_factory=list, description="Layers before the stack.")
    head: list[str] = Field(default_factory=list, description="Layers after it.")
    inputs: list[TensorView] = Field(default_factory=list, description="What /rnn/forward takes.")
    outputs: list[TensorView] = Field(default_factory=list, description="What it gives.")
    steppable: bool | None = Field(None, description="Whether /cell/step can run it.")
    generates: bool | None = Field(None, description="Whether /rnn/generate can; with feedback where O is not I.")
    weights_dtype: WeightsDtype | None = Field(None, description="Precision of the weights in memory.")
    description: str = Field("", description="What its author says of it.")
    workers: int | None = Field(None, description="How many workers did what an admin asked for: all; else null.")


class ModelList(BaseModel):
    """Every model of the repository, by name."""

    models: list[ModelView]


def models_router(registry: Registry, administration: Administration) -> APIRouter:
    router = APIRouter(prefix="/models", tags=["models"])
    admin = [Depends(admin_only)]

    @router.get("", summary="List the models")
    async def list_models() -> ModelList:
        return ModelList(models=[_model(model, registry) for model in registry.models()])

    @router.get("/{name}", summary="One model")
    async def get_model(name: str) -> ModelView:
        return _model(registry.model(name), registry)

    @router.post("/{name}/reload", summary="Read a model's folder again", dependencies=admin)
    async def reload_model(name: str) -> ModelView:
        """Pick up new versions, changed files, or a new model; what cannot serve does not replace what does."""
        model, workers = await administration.reload(name)
        return _model(model, registry, workers)

    @router.post("/{name}/unload", summary="Free a model's memory", dependencies=admin)
    async def unload_model(name: str) -> ModelView:
        """The next request loads it again. While sessions run on a version: 409, and nothing is freed."""
        model, workers = await administration.unload(name)
        return _model(model, registry, workers)

    @router.post("/{name}/drain", summary="Open no new sessions on a version", dependencies=admin)
    async def drain_model(
        name: str,
        version: Annotated[str | None, Query(max_length=64, description="The serving one if left out.")] = None,
    ) -> ModelView:
        """Until the model is reloaded; `sessions` says how many still run on each version."""
        model, workers = await administration.drain(name, version)
        return _model(model, registry, workers)

    return router


def _model(model: Model, registry: Registry, workers: int | None = None) -> ModelView:
    serving, config = model.serving(), model.config
    described: dict[str, Any] = {}
    if config is not None:
        spec = serving.spec if serving else config.stack()
        described = _describe(spec) | {"description": config.description}
    return ModelView(
        name=model.name,
        workers=workers,
        state="failed" if model.failure or serving is None else serving.state,
        reason=model.failure or (serving.failure if serving else None),
        default_version=serving.version if serving and not serving.failure else None,
        versions=[
            *(_version(version, registry, replaced=True) for version in registry.retired(model.name)),
            *(_version(version, registry) for version in model.versions.values()),
        ],
        **described,
    )


def _describe(spec: ModelSpec) -> dict[str, Any]:
    names = ModelView.model_fields.keys() & {*spec.__dataclass_fields__, "out_features", "num_embeddings"}
    described: dict[str, Any] = {name: getattr(spec, name) for name in names}
    described |= {"front": [layer.type for layer in spec.front], "head": [layer.type for layer in spec.head]}
    if spec.kind != "rnn":
        described["nonlinearity"] = None

    def tensor(name: str, *shape: str | int | None) -> TensorView:
        return TensorView(name=name, dtype="float32", shape=list(shape))

    inputs = tensor("inputs", "B", "T", spec.in_features)
    if spec.num_embeddings is not None:
        inputs = TensorView(name="inputs", dtype="int64", shape=["B", "T"])
    outputs = [tensor("outputs", "B", "T", spec.output_size), tensor("h_n", spec.states, "B", spec.state_size)]
    states = [tensor("h0", spec.states, "B", spec.state_size)]
    if spec.has_cell_state:
        states.append(tensor("c0", spec.states, "B", spec.hidden_size))
        outputs.append(tensor("c_n", spec.states, "B", spec.hidden_size))
    if spec.head:
        time = ["T"] if spec.pooling == "none" else []
        outputs.append(tensor("predictions", "B", *time, spec.out_features))
    steppable = not spec.bidirectional
    generates = spec.feeds_itself or (steppable and bool(spec.step_predictions) and spec.num_embeddings is None)
    described |= {"steppable": steppable, "generates": generates}
    return described | {"inputs": [inputs, *states], "outputs": outputs}


def _version(version: ModelVersion, registry: Registry, *, replaced: bool = False) -> VersionView:
    engine = version.engine
    return VersionView(
        version=version.version,
        state=version.state,
        reason=version.failure,
        engine=engine.name if engine else None,
        sessions=registry.sessions_on(version),
        draining=version.draining,
        replaced=replaced,
        loaded_bytes=engine.nbytes if engine else 0,
        notes=version.notes,
    )
