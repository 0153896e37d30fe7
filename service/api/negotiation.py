"""Content types and codings: what a body is, and what the client wants back.

Clients send the same few headers again and again: what they mean is worked out once.
"""

import re
from functools import lru_cache

from service.errors import NotAcceptable, UnsupportedMediaType

JSON = "application/json"
NDJSON = "application/x-ndjson"
SAFETENSORS = "application/vnd.safetensors"
OCTETS = "application/octet-stream"
FORMATS = (JSON, SAFETENSORS)

ENCODINGS = ("zstd", "gzip", "deflate")  # zstd is several times quicker than the others

MAX_REMEMBERED = 256

_WEIGHT = re.compile(r"0(\.[0-9]{0,3})?|1(\.0{0,3})?")


@lru_cache(MAX_REMEMBERED)
def media_type(content_type: bytes) -> str:
    """A content type without its parameters; JSON if nothing is said."""
    return content_type.decode("latin-1").split(";", 1)[0].strip().lower() or JSON


@lru_cache(MAX_REMEMBERED)
def request_format(content_type: bytes, offered: tuple[str, ...] = FORMATS) -> str:
    """The format of a request body; JSON if nothing is said. Raises UnsupportedMediaType."""
    if not content_type:
        return JSON
    text = content_type.decode("latin-1")
    kind, *parameters = (part.strip().lower() for part in text.split(";"))
    charset = next((item.split("=", 1)[1].strip('"') for item in parameters if item.startswith("charset=")), "utf-8")
    if kind not in offered or charset not in ("utf-8", "utf8", "us-ascii"):
        raise UnsupportedMediaType(f"Content-Type is {text!r:.80}; this call takes {', '.join(offered)}")
    return kind


@lru_cache(MAX_REMEMBERED)
def reply_format(accept: bytes, default: str, offered: tuple[str, ...] = FORMATS) -> str:
    """The format of the reply: the best of `Accept` that is offered; the default if it says nothing or anything.

    Raises NotAcceptable.
    """
    text = accept.decode("latin-1")
    if not text or text == "*/*":
        return default
    weights = _preferences(text)
    ranked = {kind: _weight(kind, weights) for kind in (default, *offered)}
    best = max(ranked, key=lambda kind: ranked[kind])
    if not ranked[best]:
        raise NotAcceptable(f"Accept is {text!r:.80}; this call answers in {', '.join(offered)}")
    return best


@lru_cache(MAX_REMEMBERED)
def reply_encoding(accept_encoding: bytes) -> str | None:
    """The best of `ENCODINGS` that the client takes; at equal weight the first."""
    weights = _preferences(accept_encoding.decode("latin-1"))
    weight = {name: weights.get(name, weights.get("*", 0.0)) for name in ENCODINGS}
    best = max(ENCODINGS, key=lambda name: weight[name])
    return best if weight[best] else None


def _preferences(header: str) -> dict[str, float]:
    """The items of an `Accept…` header and their weights (RFC 9110, 12.4.2); an unreadable weight counts as 0."""
    weights = {}
    for item in header.lower().split(","):
        name, *parameters = (part.strip() for part in item.split(";"))
        weight = next((part[2:] for part in parameters if part.startswith("q=")), "1")
        weights[name] = float(weight) if _WEIGHT.fullmatch(weight) else 0.0
    return weights


def _weight(kind: str, weights: dict[str, float]) -> float:
    family = kind.split("/", 1)[0] + "/*"
    return weights.get(kind, weights.get(family, weights.get("*/*", 0.0)))
