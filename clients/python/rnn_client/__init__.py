"""Client of rnn-service: whole sequences, single steps, and sessions whose steps run exactly once.

with Client("http://127.0.0.1:8000") as client:
    forecast = client.forward(np.array([[4.2], [21.5]]), "sunspots").predictions
    with client.session("sunspots") as session:
        for result in session.stream(sensor(), returns="predictions"):
            print(result.predictions)
"""

from rnn_client.async_client import AsyncClient
from rnn_client.async_session import AsyncSession
from rnn_client.client import Client, Session
from rnn_client.errors import (
    BrokenReply,
    ClientError,
    ConnectionLost,
    DeadlinePassed,
    Forbidden,
    InvalidRequest,
    ModelFailed,
    ModelNotFound,
    NonFiniteOutput,
    NotSteppable,
    Place,
    ServiceError,
    ServiceFull,
    SessionBusy,
    SessionGone,
    SessionNotFound,
    SessionsFull,
    StepConflict,
    StepOutOfOrder,
    StreamClosed,
    Unauthorized,
    VersionNotFound,
)
from rnn_client.results import ForwardResult, ModelInfo, Snapshot, StepResult, VersionInfo

__all__ = [
    "AsyncClient",
    "AsyncSession",
    "BrokenReply",
    "Client",
    "ClientError",
    "ConnectionLost",
    "DeadlinePassed",
    "Forbidden",
    "ForwardResult",
    "InvalidRequest",
    "ModelFailed",
    "ModelInfo",
    "ModelNotFound",
    "NonFiniteOutput",
    "NotSteppable",
    "Place",
    "ServiceError",
    "ServiceFull",
    "Session",
    "SessionBusy",
    "SessionGone",
    "SessionNotFound",
    "SessionsFull",
    "Snapshot",
    "StepConflict",
    "StepOutOfOrder",
    "StepResult",
    "StreamClosed",
    "Unauthorized",
    "VersionInfo",
    "VersionNotFound",
]
