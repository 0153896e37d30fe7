"""What people, operators and tools read: the page, health, metrics, and the pages behind the problems' types."""

import re
from base64 import b64encode
from hashlib import sha256
from pathlib import Path

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import Field

from service.api.metrics import Sampler
from service.api.readiness import Readiness
from service.api.replies import View
from service.errors import RouteNotFound

_PAGE = Path(__file__).parent / "page"
_PROBLEMS = _PAGE / "problems"  # a link to docs/; a wheel has the files themselves
_SERIES = "{{series}}"
_SLUG = re.compile(r"[a-z-]{1,64}")


class Health(View):
    """Whether the process can do its work, and why not."""

    status: str = Field(description="live, ready, or not ready.")
    reasons: list[str] = Field(default_factory=list, description="What it waits for.")


def operations_router(sampler: Sampler, readiness: Readiness) -> APIRouter:
    router = APIRouter(tags=["operations"])
    page, headers = page_document()

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
        page = _PROBLEMS / f"{slug}.md"
        if not _SLUG.fullmatch(slug) or not page.is_file():
            raise RouteNotFound(f"there is no page on {slug!r:.80}")
        return Response(page.read_bytes(), media_type="text/plain; charset=utf-8")

    return router


def page_document() -> tuple[bytes, dict[str, str]]:
    """The page at `/`, and the headers that let the browser run this page and nothing else.

    It has the bundled series in it: one document that asks nobody else for more.
    """
    html = (_PAGE / "index.html").read_text().replace(_SERIES, (_PAGE / "series.json").read_text().strip())
    policy = {
        "default-src": "'none'",
        "script-src": _hashes(html, "script"),
        "style-src": _hashes(html, "style"),
        "img-src": "data:",  # the icon
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }
    return html.encode(), {
        "content-security-policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "cross-origin-opener-policy": "same-origin",
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
        "cache-control": "no-cache",
    }


def _hashes(html: str, element: str) -> str:
    """The CSP sources of a page's inline elements; a data block is never run and needs none."""
    contents = re.findall(rf"<{element}(?: type=module)?>(.*?)</{element}>", html, re.DOTALL)
    return " ".join(f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'" for text in contents)
