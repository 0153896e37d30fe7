"""Everything that can go wrong for a caller, in the domain's words; `api.problems` maps each to an HTTP status."""

from dataclasses import dataclass


class ClientGone(Exception):
    """The client hung up: there is nobody left to answer, and nothing left to run for it."""


class ServiceError(Exception):
    """Base of all errors that a caller is told about; the message is one sentence for the user."""


Loc = tuple[str | int, ...]  # a place in a request, names and indices from the outside in


def spell(loc: Loc) -> str:
    """A place in the words of the client's own code: `inputs[3][17]`."""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in loc).removeprefix(".")


@dataclass(frozen=True, slots=True)
class FieldError:
    """One field that is wrong: where it is (`("inputs", 3, 17)`) and what was expected and came."""

    loc: Loc
    msg: str


class MalformedRequest(ServiceError):
    """The bytes are no HTTP."""


class MalformedBody(ServiceError):
    """The bytes are not what their content type says."""


class DuplicateName(ServiceError):
    """A name stands twice in one object."""


class MalformedHost(ServiceError):
    """Host is missing, stands there twice, or holds no host."""


class Unauthorized(ServiceError):
    """No key, or a wrong one."""


class Forbidden(ServiceError):
    """The key, the page or the name by which the service was called does not give the right to do this."""


class RouteNotFound(ServiceError):
    """There is nothing at this path."""


class MethodNotAllowed(ServiceError):
    """The path exists, the method does not."""

    def __init__(self, message: str, allowed: str) -> None:
        super().__init__(message)
        self.allowed = allowed


class UpgradeRequired(ServiceError):
    """The path is a WebSocket's, and the request did not ask for one."""


class ModelNotFound(ServiceError):
    """No model of that name in the repository."""


class VersionNotFound(ServiceError):
    """The model has no such version."""


class ModelFailed(ServiceError):
    """The model is in the repository, but its files are not a model that can be served."""


class WorkerFailed(ServiceError):
    """Some workers of the service did what they were told to, and some did not."""


class WeightsUnavailable(ServiceError):
    """The files of the weights that a session runs on are missing or cannot be read; the session waits for them."""


class NotAcceptable(ServiceError):
    """None of the formats in `Accept` can be produced."""


class BodyTimeout(ServiceError):
    """The body arrived more slowly than the service waits for."""


class BodyTooLarge(ServiceError):
    """The body, decompressed, is over the limit."""


class UnsupportedMediaType(ServiceError):
    """The content type, or the content encoding, is not one that the service reads."""


class InvalidRequest(ServiceError):
    """A shape, a value or an argument is wrong for this model."""

    def __init__(self, errors: list[FieldError]) -> None:
        super().__init__(errors[0].msg)
        self.errors = errors

    @classmethod
    def at(cls, message: str, *loc: str | int) -> "InvalidRequest":
        """The error of one field, or of one place in it."""
        return cls([FieldError(loc, message)])


class NonFiniteOutput(ServiceError):
    """The model produced NaN or infinity, which the reply's format cannot carry."""


class NotSteppable(ServiceError):
    """A bidirectional model has no single next step."""


class ServiceFull(ServiceError):
    """All queues are full; the same request can succeed a little later."""


class ClientFull(ServiceError):
    """The client has as many requests under way as one client may; the same request can succeed a little later."""


class ServiceDraining(ServiceError):
    """The process is shutting down; another one will answer."""


class DeadlinePassed(ServiceError):
    """The request's own deadline passed before it ran; it did not run."""


class SessionNotFound(ServiceError):
    """No session of that id, or it belongs to another key."""


class SessionGone(ServiceError):
    """The session has ended; what was its last step, and why it ended, is still known."""

    def __init__(self, message: str, reason: str, step: int) -> None:
        super().__init__(message)
        self.reason = reason
        self.step = step


class StepConflict(ServiceError):
    """Step n was already done with other inputs."""


class StepOutOfOrder(ServiceError):
    """The number of a step is neither the next one nor one that can be answered again."""

    def __init__(self, message: str, expected: int) -> None:
        super().__init__(message)
        self.expected = expected


class SessionBusy(ServiceError):
    """Too many steps of one session wait already."""


class SessionsFull(ServiceError):
    """No room for another session, or for what a session would grow by."""


class StoreUnavailable(ServiceError):
    """The store of sessions does not answer, or cannot write; a step that was under way may have been kept or not."""


class ModelInUse(ServiceError):
    """Live sessions run on this version, or it takes no new ones."""
