"""Client of rnn-service: whole sequences, single steps, and sessions whose steps run exactly once.

with Client("http://127.0.0.1:8000") as client:
    forecast = client.forward(np.array([[4.2], [21.5]]), "sunspots").predictions
    with client.session("sunspots") as session:
        for result in session.stream(sensor(), returns="predictions"):
            print(result.predictions)
"""

from rnn_client.async_client import AsyncClient as AsyncClient
from rnn_client.async_session import AsyncSession as AsyncSession
from rnn_client.client import Client as Client
from rnn_client.client import Session as Session
from rnn_client.errors import BrokenReply as BrokenReply
from rnn_client.errors import ClientError as ClientError
from rnn_client.errors import ConnectionLost as ConnectionLost
from rnn_client.errors import DeadlinePassed as DeadlinePassed
from rnn_client.errors import Forbidden as Forbidden
from rnn_client.errors import InvalidRequest as InvalidRequest
from rnn_client.errors import ModelFailed as ModelFailed
from rnn_client.errors import ModelNotFound as ModelNotFound
from rnn_client.errors import NonFiniteOutput as NonFiniteOutput
from rnn_client.errors import NotSteppable as NotSteppable
from rnn_client.errors import Place as Place
from rnn_client.errors import ServiceError as ServiceError
from rnn_client.errors import ServiceFull as ServiceFull
from rnn_client.errors import SessionBusy as SessionBusy
from rnn_client.errors import SessionGone as SessionGone
from rnn_client.errors import SessionNotFound as SessionNotFound
from rnn_client.errors import SessionsFull as SessionsFull
from rnn_client.errors import StepConflict as StepConflict
from rnn_client.errors import StepOutOfOrder as StepOutOfOrder
from rnn_client.errors import StreamClosed as StreamClosed
from rnn_client.errors import Unauthorized as Unauthorized
from rnn_client.errors import VersionNotFound as VersionNotFound
from rnn_client.generation import GenerateResult as GenerateResult
from rnn_client.results import ForwardResult as ForwardResult
from rnn_client.results import ModelInfo as ModelInfo
from rnn_client.results import Snapshot as Snapshot
from rnn_client.results import StepResult as StepResult
from rnn_client.results import VersionInfo as VersionInfo
