"""A forward, steps with and without a session, and a problem, by a client that openapi-python-client generated."""

import json
import sys

from rnn.api.inference import forward, step
from rnn.api.models import get_model
from rnn.api.sessions import delete_session, get_session, open_session
from rnn.client import AuthenticatedClient
from rnn.models import (
    ForwardReply,
    ForwardRequest,
    ModelView,
    OpenRequest,
    Problem,
    SessionStepReply,
    SessionStepRequest,
    SessionView,
    StepReply,
    StepRequest,
)

_, url, key = sys.argv
client = AuthenticatedClient(base_url=url, token=key)

rows: list[list[list[float]]] = [[[1, 2, 3, 4, 5], [0, 0, 1, 0, 0]], [[1, 0, 0, 0, 0]]]
ran = forward.sync(client=client, body=ForwardRequest(inputs=rows, model="lstm", returns=["outputs", "h_n"]))
assert isinstance(ran, ForwardReply)

once = step.sync(client=client, body=StepRequest(inputs=[1.0, 2, 3, 4], model="tanh"))
assert isinstance(once, StepReply)

opened = open_session.sync(client=client, body=OpenRequest(model="tanh", ttl_seconds=60))
assert isinstance(opened, SessionView)
session = opened.session
steps = SessionStepRequest(inputs=[[1.0, 2, 3, 4], [0.0, 1, 0, 1]], session=session, step=1)
stepped = step.sync(client=client, body=steps)
assert isinstance(stepped, SessionStepReply)
ended = delete_session.sync(session, client=client, state=True)
assert isinstance(ended, SessionView)
gone = get_session.sync(session, client=client)
assert isinstance(gone, Problem)

model = get_model.sync("lstm", client=client)
assert isinstance(model, ModelView)
said = {"outputs": ran.outputs, "h": once.h, "count": stepped.step, "ended": ended.to_dict(), "size": model.input_size}
json.dump(said | {"gone": [gone.status, gone.reason, gone.step]}, sys.stdout)
