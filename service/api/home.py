"""The page at `/`: the models, and a live stream through one of them; one document that asks nobody else for more."""

import re
from base64 import b64encode
from hashlib import sha256
from pathlib import Path

_FOLDER = Path(__file__).parent / "page"
_SERIES = "{{series}}"


def document() -> tuple[bytes, dict[str, str]]:
    """The page with the bundled series in it, and the headers that let the browser run this page and nothing else."""
    html = (_FOLDER / "index.html").read_text().replace(_SERIES, (_FOLDER / "series.json").read_text().strip())
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
