"""The model repository by the Open Inference Protocol: its index, and loading and unloading of models."""

from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends
from fastapi import Request as Routed
from pydantic import BaseModel

from service.api.application import request_of
from service.api.bodies import Bodies, Incoming
from service.api.negotiation import JSON
from service.api.requests import validate
from service.api.routes import admin_only
from service.api.v2.requests import STEP
from service.api.v2.views import IndexEntry, IndexRequest, Loaded, LoadRequest, UnloadRequest
from service.serving.registry import Model, Registry
from service.wire import open_inference


def repository_router(registry: Registry, bodies: Bodies) -> APIRouter:
    router = APIRouter(prefix="/v2/repository", tags=["open inference protocol"])

    async def posted(routed: Routed) -> Any:
        """The JSON of a body; clients send none, and any Content-Type."""
        request = request_of(routed.scope)
        bodies.refuse_too_large(request)
        body = await bodies.read(request, Incoming(request, routed.receive))
        return open_inference.cut(body, None).document if body.strip() else {}

    def post(path: str, takes: type[BaseModel], operation: str, summary: str, **options: Any) -> Callable[..., Any]:
        content = {JSON: {"schema": takes.model_json_schema()}}
        options["openapi_extra"] = {"requestBody": {"content": content}}
        return router.post(path, operation_id=f"v2_{operation}", summary=summary, **options)

    @post("/index", IndexRequest, "repository_index", "All versions of all models")
    async def index(body: Annotated[Any, Depends(posted)]) -> list[IndexEntry]:
        asked = validate(IndexRequest, body)
        entries = [entry for model in registry.models() for entry in _entries(model)]
        return [entry for entry in entries if entry.state == "READY" or not asked.ready]

    admin = [Depends(admin_only)]

    @post(
        "/models/{model}/load",
        LoadRequest,
        "load_model",
        "Read a model's folder again, and load it",
        dependencies=admin,
    )
    async def load(model: str, body: Annotated[Any, Depends(posted)]) -> Loaded:
        validate(LoadRequest, body)
        if found := (await registry.reload(model.removesuffix(STEP))).serving():
            await registry.engine(found)
        return Loaded(name=model, load=True)

    @post("/models/{model}/unload", UnloadRequest, "unload_model", "Free a model's memory", dependencies=admin)
    async def unload(model: str, body: Annotated[Any, Depends(posted)]) -> Loaded:
        """The next request loads it again. While sessions run on a version: 409, and nothing is freed."""
        validate(UnloadRequest, body)
        registry.unload(model.removesuffix(STEP))
        return Loaded(name=model, load=False)

    return router


def _entries(model: Model) -> Iterator[IndexEntry]:
    """The versions of a model, and of its single steps if it can be stepped."""
    if not model.versions:
        yield IndexEntry(name=model.name, version="", state="UNAVAILABLE", reason=model.failure or "")
    for name in (model.name, model.name + STEP):
        for version in model.versions.values():
            failure = model.failure or version.failure
            if name == model.name or not version.spec.bidirectional:
                state: Literal["READY", "UNAVAILABLE"] = "UNAVAILABLE" if failure else "READY"
                yield IndexEntry(name=name, version=version.version, state=state, reason=failure or "")
