"""What people, operators and tools read: the page, health, metrics, and the pages behind the problems' types."""

import re
from pathlib import Path

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import Field

from service.api.home import document
from service.api.metrics import Sampler
from service.api.readiness import Readiness
from service.api.replies import View
from service.errors import RouteNotFound

_SLUG = re.compile(r"[a-z-]{1,64}")
_PAGES = Path(__file__).parent / "page" / "problems"  # a link to docs/; a wheel has the files themselves


class Health(View):
    """Whether the process can do its work, and why not."""

    status: str = Field(description="live, ready, or not ready.")
    reasons: list[str] = Field(default_factory=list, description="What it waits for.")


def operations_router(sampler: Sampler, readiness: Readiness) -> APIRouter:
    router = APIRouter(tags=["operations"])
    page, headers = document()

    @router.get("/", include_in_schema=False)
    async def home() -> Response:
        return Response(page, headers=headers, media_type="text/html; charset=utf-8")

    @router.get("/health/live", summary="Is the process alive?")
    async def live() -> Health:
        return Health(status="live")

    @router.get("/health/ready", summary="Should requests come here?", responses={503: {"model": Health}})
    async def ready(response: Response) -> Health:
        reasons = readiness.reasons()
        if reasons:
            response.status_code = 503
        return Health(status="not ready" if reasons else "ready", reasons=reasons)

    @router.get("/metrics", summary="Prometheus metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        return Response(generate_latest(sampler.collected()), headers={"content-type": CONTENT_TYPE_LATEST})

    @router.get("/problems/{slug}", summary="What a problem means", response_class=PlainTextResponse)
    async def problem_page(slug: str) -> Response:
        page = _PAGES / f"{slug}.md"
        if not _SLUG.fullmatch(slug) or not page.is_file():
            raise RouteNotFound(f"there is no page on {slug!r:.80}")
        return Response(page.read_bytes(), media_type="text/plain; charset=utf-8")

    return router
