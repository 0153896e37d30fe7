"""Everything that a call can raise: ServiceError if the service refused it, ConnectionLost without an answer."""

import json
import re
from collections.abc import Mapping
from http.client import responses
from typing import Any, ClassVar, NamedTuple

TRANSIENT = frozenset({408, 429, 502, 503, 504})
"""Statuses of requests that may succeed a little later."""

FINAL_CLOSE_CODES = frozenset({1002, 1003, 1007, 1008, 1009, 1010})
"""WebSocket close codes that say that the client is at fault, so that another try would not help."""


class ClientError(Exception):
    """Base of all errors of this package."""

    transient = False
    """Whether the same request may succeed a little later."""

    settled = True
    """Whether a request that has not acted by now never will."""

    retry_after: float | None = None
    """Seconds after which the service allows another try."""


class ConnectionLost(ClientError):
    """No answer came: no connection, a cut one, or a time-out. `settled` is true if the request was never sent."""

    transient = True

    def __init__(self, message: str, *, settled: bool = False) -> None:
        super().__init__(message)
        self.settled = settled


class BrokenReply(ClientError):
    """The answer is not what the service gives: something else is at this address."""


class StreamClosed(ClientError):
    """The service closed a stream without a problem document. code is the WebSocket close code."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"the stream was closed with code {code}{': ' * bool(reason)}{reason}")
        self.code = code
        self.transient = code not in FINAL_CLOSE_CODES


class Place(NamedTuple):
    """One wrong field: loc holds names and indices from the outside in; msg says what was expected and what came."""

    loc: tuple[str | int, ...]
    msg: str


class ServiceError(ClientError):
    """The service answered with a problem document (RFC 9457).

    - type: `/problems/<slug>`, a page that the service has; title: the same in words; status: the HTTP status
    - detail: one sentence that names the field, what was expected and what came
    - errors: every field that is wrong, where validation failed
    - request_id: the request's id in the service's log
    - problem: the whole document
    """

    kinds: ClassVar[dict[str, "type[ServiceError]"]] = {}

    def __init_subclass__(cls) -> None:
        slug = re.sub(r"(?<!^)(?=[A-Z])", "-", cls.__name__).lower()
        ServiceError.kinds[slug] = cls

    def __init__(self, problem: Mapping[str, Any], retry_after: float | None = None) -> None:
        self.problem = problem
        self.type = str(problem.get("type", "about:blank"))
        self.title = str(problem.get("title", ""))
        self.status = int(problem.get("status", 0))
        self.detail = str(problem.get("detail", self.title))
        self.errors = [Place(tuple(item["loc"]), item["msg"]) for item in problem.get("errors") or ()]
        self.request_id: str | None = problem.get("request_id")
        self.retry_after = retry_after
        self.transient = self.status in TRANSIENT and not isinstance(self, ModelFailed)
        self.settled = self.status not in (502, 504)  # a proxy gave up on it; it may still run
        super().__init__(self.detail)


class InvalidRequest(ServiceError):
    """422: a shape, a value or an argument is wrong for this model."""


class NonFiniteOutput(ServiceError):
    """422: the result holds NaN or infinity, and this format has neither."""


class NotSteppable(ServiceError):
    """422: a bidirectional model has no single next step."""


class Unauthorized(ServiceError):
    """401: no key, or a wrong one."""


class Forbidden(ServiceError):
    """403: the key does not give the right to do this."""


class ModelNotFound(ServiceError):
    """404: no model of that name."""


class VersionNotFound(ServiceError):
    """404: the model has no such version."""


class ModelFailed(ServiceError):
    """503: the model's files cannot be served; trying again does not help."""


class SessionNotFound(ServiceError):
    """404: no session of that id, or it belongs to another key."""


class SessionGone(ServiceError):
    """410: the session has ended. reason is deleted, expired, evicted or model-replaced; step its last step."""

    def __init__(self, problem: Mapping[str, Any], retry_after: float | None = None) -> None:
        super().__init__(problem, retry_after)
        self.reason = str(problem.get("reason", ""))
        self.step = int(problem.get("step", 0))


class StepConflict(ServiceError):
    """409: a step of this number was done with other inputs."""


class StepOutOfOrder(ServiceError):
    """409: neither the next step nor one whose reply is still kept. expected is the number of the next."""

    def __init__(self, problem: Mapping[str, Any], retry_after: float | None = None) -> None:
        super().__init__(problem, retry_after)
        self.expected = int(problem.get("expected", 0))


class SessionBusy(ServiceError):
    """429: too many steps of this session wait already."""


class SessionsFull(ServiceError):
    """503: no room for another session."""


class ServiceFull(ServiceError):
    """503: all queues are full."""


class DeadlinePassed(ServiceError):
    """504: the time that the request allowed passed before it ran; it did not run."""


def service_error(status: int, headers: Mapping[str, str], body: bytes) -> ServiceError:
    """The error in an HTTP reply; what is no problem document (a proxy's page) is described by its status."""
    try:
        problem = json.loads(body) if "problem+json" in headers.get("content-type", "") else None
    except ValueError:
        problem = None
    if not isinstance(problem, dict):
        title = responses.get(status, "Error")
        problem = {"title": title, "detail": f"{status} {title}"}
    seconds = headers.get("retry-after", "")
    return problem_error({"status": status} | problem, float(seconds) if seconds.isdecimal() else None)


def problem_error(problem: Mapping[str, Any], retry_after: float | None = None) -> ServiceError:
    """The error that a problem document describes."""
    slug = str(problem.get("type", "")).rsplit("/", 1)[-1]
    return ServiceError.kinds.get(slug, ServiceError)(problem, retry_after)
