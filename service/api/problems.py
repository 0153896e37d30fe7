"""The one table from a domain error to an HTTP status, and what tells a client.

That is a problem document (RFC 9457), or under `/v2` what the Open Inference Protocol has for it.
"""

import re
from typing import Any

import orjson

from service import errors
from service.api.negotiation import JSON
from service.api.paths import is_v2
from service.api.request import Reply, Request

STATUS: dict[type[Exception], int] = {
    errors.MalformedRequest: 400,
    errors.MalformedBody: 400,
    errors.DuplicateName: 400,
    errors.MalformedHost: 400,
    errors.Unauthorized: 401,
    errors.Forbidden: 403,
    errors.RouteNotFound: 404,
    errors.ModelNotFound: 404,
    errors.VersionNotFound: 404,
    errors.MethodNotAllowed: 405,
    errors.NotAcceptable: 406,
    errors.BodyTimeout: 408,
    errors.BodyTooLarge: 413,
    errors.UnsupportedMediaType: 415,
    errors.UpgradeRequired: 426,
    errors.InvalidRequest: 422,
    errors.NonFiniteOutput: 422,
    errors.NotSteppable: 422,
    errors.ClientFull: 429,
    errors.SessionNotFound: 404,
    errors.StepConflict: 409,
    errors.StepOutOfOrder: 409,
    errors.ModelInUse: 409,
    errors.SessionGone: 410,
    errors.SessionBusy: 429,
    errors.SessionsFull: 503,
    errors.StoreUnavailable: 503,
    errors.ModelFailed: 503,
    errors.WeightsUnavailable: 503,
    errors.ServiceFull: 503,
    errors.ServiceDraining: 503,
    errors.DeadlinePassed: 504,
}

RETRY_AFTER_SECONDS = 1

MEDIA_TYPE = b"application/problem+json"


def slug(kind: type[Exception]) -> str:
    """The last part of the problem's type: `VersionNotFound` is `/problems/version-not-found`."""
    return re.sub(r"(?<!^)(?=[A-Z])", "-", kind.__name__).lower() if kind in STATUS else "internal-error"


def problem(error: Exception, request_id: str) -> dict[str, Any]:
    """The problem document of an error; of one that is no ServiceError it says where the reason is."""
    kind, name = type(error), slug(type(error))
    document: dict[str, Any] = {
        "type": f"/problems/{name}",
        "title": name.replace("-", " ").capitalize(),
        "status": STATUS.get(kind, 500),
        "detail": str(error),
    }
    if isinstance(error, errors.InvalidRequest):
        document["errors"] = [{"loc": list(item.loc), "msg": item.msg} for item in error.errors]
    elif isinstance(error, errors.StepOutOfOrder):
        document["expected"] = error.expected
    elif isinstance(error, errors.SessionGone):
        document |= {"reason": error.reason, "step": error.step}
    elif kind not in STATUS:
        document["detail"] = "the service failed on this request; its log has the reason under this request_id"
    document["request_id"] = request_id
    return document


def problem_reply(error: Exception, request: Request) -> Reply:
    status, media_type, document = STATUS.get(type(error), 500), MEDIA_TYPE, problem(error, request.request_id)
    if is_v2(request.path):
        found = dict.fromkeys(item["msg"] for item in document.get("errors", ()))
        document = {"error": "; ".join(found) or document["detail"]}
        status, media_type = 400 if status == 422 else status, JSON.encode()
    return Reply(status, media_type, encode_problem(document), _headers(error, status))


def encode_problem(document: dict[str, Any]) -> bytes:
    """A problem document as JSON, whatever it quotes: a lone surrogate in a client's string is replaced."""
    try:
        return orjson.dumps(document)
    except orjson.JSONEncodeError:
        document.pop("errors", None)
        texts = {name: text.encode("utf-8", "replace").decode() for name, text in document.items() if type(text) is str}
        return orjson.dumps(document | texts)


def _headers(error: Exception, status: int) -> list[tuple[bytes, bytes]]:
    if status in (429, 503) and not isinstance(error, errors.ModelFailed):
        return [(b"retry-after", str(RETRY_AFTER_SECONDS).encode())]
    if isinstance(error, errors.Unauthorized):
        return [(b"www-authenticate", b"Bearer")]
    if isinstance(error, errors.UpgradeRequired):
        return [(b"upgrade", b"websocket"), (b"connection", b"upgrade")]
    if isinstance(error, errors.MethodNotAllowed):
        return [(b"allow", error.allowed.encode())]
    return []
