"""The one table from a domain error to an HTTP status, and the problem document that tells a client (RFC 9457)."""

import re
from functools import cache
from http import HTTPStatus
from typing import Any

import orjson

from service import errors
from service.api.request import Reply

STATUS: dict[type[errors.ServiceError], int] = {
    errors.MalformedBody: 400,
    errors.DuplicateName: 400,
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
    errors.ServiceFull: 503,
    errors.ServiceDraining: 503,
    errors.DeadlinePassed: 504,
}

RETRY_AFTER_SECONDS = 1
_RETRY = (
    errors.ClientFull,
    errors.ServiceFull,
    errors.ServiceDraining,
    errors.SessionBusy,
    errors.SessionsFull,
    errors.StoreUnavailable,
)

MEDIA_TYPE = b"application/problem+json"


def slug(kind: type[errors.ServiceError]) -> str:
    """The last part of the problem's type: `VersionNotFound` is `/problems/version-not-found`."""
    return _hyphened(kind.__name__)


@cache
def _hyphened(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "-", name).lower()


def problem(error: errors.ServiceError, request_id: str) -> dict[str, Any]:
    """The problem document of an error."""
    kind = type(error)
    document: dict[str, Any] = {
        "type": f"/problems/{slug(kind)}",
        "title": slug(kind).replace("-", " ").capitalize(),
        "status": STATUS[kind],
        "detail": str(error),
    }
    if isinstance(error, errors.InvalidRequest):
        document["errors"] = [{"loc": list(item.loc), "msg": item.msg} for item in error.errors]
    elif isinstance(error, errors.StepOutOfOrder):
        document["expected"] = error.expected
    elif isinstance(error, errors.SessionGone):
        document |= {"reason": error.reason, "step": error.step}
    document["request_id"] = request_id
    return document


def internal_problem(request_id: str) -> dict[str, Any]:
    """What a client hears of an error of ours: that it is in the log, under this id."""
    return {
        "type": "/problems/internal-error",
        "title": HTTPStatus(500).phrase,
        "status": 500,
        "detail": "the service failed on this request; its log has the reason under this request_id",
        "request_id": request_id,
    }


def problem_reply(error: errors.ServiceError, request_id: str) -> Reply:
    """What a client gets for an error."""
    return Reply(STATUS[type(error)], MEDIA_TYPE, encode_problem(problem(error, request_id)), _headers(error))


def internal_reply(request_id: str) -> Reply:
    """What a client gets for an error of ours."""
    return Reply(500, MEDIA_TYPE, encode_problem(internal_problem(request_id)))


def encode_problem(document: dict[str, Any]) -> bytes:
    """A problem document as JSON, whatever it quotes: a lone surrogate in a client's string is replaced."""
    try:
        return orjson.dumps(document)
    except orjson.JSONEncodeError:
        document["detail"] = document["detail"].encode("utf-8", "replace").decode()
        document.pop("errors", None)
        return orjson.dumps(document)


def _headers(error: errors.ServiceError) -> list[tuple[bytes, bytes]]:
    if isinstance(error, _RETRY):
        return [(b"retry-after", str(RETRY_AFTER_SECONDS).encode())]
    if isinstance(error, errors.Unauthorized):
        return [(b"www-authenticate", b"Bearer")]
    if isinstance(error, errors.UpgradeRequired):
        return [(b"upgrade", b"websocket"), (b"connection", b"upgrade")]
    if isinstance(error, errors.MethodNotAllowed):
        return [(b"allow", error.allowed.encode())]
    return []
