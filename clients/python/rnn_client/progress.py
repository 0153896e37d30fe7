"""What a client knows of one session: which step was answered last, and so which number the next one has."""

import json
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote

from numpy.typing import ArrayLike

from rnn_client import calls
from rnn_client.calls import Call, Returns
from rnn_client.results import StepResult
from rnn_client.snapshots import Snapshot
from rnn_client.tensors import MEDIA_TYPE, floats


@dataclass
class Progress:
    """A session and the last step of it that was answered; the calls that go on from there.

    replay_steps: how many of its latest steps the service can answer again to a stream; None if it did not say.
    streaming: whether a stream has steps under way, so that nobody knows which number is next.
    """

    session: str
    model: str
    version: str
    done: int
    replay_steps: int | None = None
    streaming: bool = False

    @classmethod
    def read(cls, body: bytes) -> "Progress":
        """From the service's description of a session."""
        document: dict[str, Any] = json.loads(body)
        return cls(
            session=document["session"],
            model=document["model"],
            version=document["version"],
            done=document["step"],
            replay_steps=document.get("replay_steps"),
        )

    def step(self, inputs: ArrayLike, returns: Returns) -> Call[StepResult]:
        """Run inputs (I), or (k,I) as one commit, as the steps after the last that was answered.

        If the answer is lost, the same number goes with the next step too: it is answered again if the inputs are the
        same, and refused if they are not.
        """
        values = floats(inputs)
        if values.ndim not in (1, 2):
            raise ValueError(f"inputs has shape {values.shape}; expected (I), or (k, I) for k steps")
        self.refuse_while_streaming()
        count = len(values) if values.ndim == 2 else 1
        last = self.done + count
        call = calls.step(values, returns, session=self.session, step=self.done + 1)

        def absorb(body: bytes) -> StepResult:
            result = call.read(body)
            if result.step != last:
                raise ValueError(f"step {last} was answered with step {result.step}")
            self.done = last
            return StepResult(result.arrays, self.model, self.version, last)

        return replace(call, read=absorb)

    def snapshot(self) -> Call[Snapshot]:
        """GET with the state."""
        return Call("GET", f"{self._path}?state=true", Snapshot.from_bytes, headers={"accept": MEDIA_TYPE})

    def fork(self) -> Call["Progress"]:
        """A new session from this one's state."""
        self.refuse_while_streaming()
        return Call("POST", f"{self._path}/fork", Progress.read)

    def reset(self) -> Call[None]:
        """Back to the initial state. Not repeated while an earlier try could still act: it might undo later steps."""
        self.refuse_while_streaming()

        def read(body: bytes) -> None:
            self.done = int(json.loads(body)["step"])

        return Call("POST", f"{self._path}/reset", read, repeatable=False)

    def close(self) -> Call[None]:
        """End the session."""
        return Call("DELETE", self._path, lambda _: None)

    def refuse_while_streaming(self) -> None:
        """Raise RuntimeError if a stream has steps under way."""
        if self.streaming:
            raise RuntimeError("a stream of this session has steps under way: close it first (contextlib.aclosing)")

    @property
    def _path(self) -> str:
        return _path(self.session)


def open_fields(
    model: str | None, version: str | None, h: ArrayLike | None, c: ArrayLike | None, ttl_seconds: float | None
) -> dict[str, Any]:
    """What a session is opened with."""
    return {
        "model": model,
        "version": version,
        "h": calls.optional(h),
        "c": calls.optional(c),
        "ttl_seconds": ttl_seconds,
    }


def opening(fields: dict[str, Any]) -> Call[Progress]:
    """Open a session."""
    return calls.open_session(fields, Progress.read)


def restoring(snapshot: Snapshot, ttl_seconds: float | None) -> Call[Progress]:
    """Open a session from a snapshot's state, on the version that the state is of."""
    return opening(open_fields(snapshot.model, snapshot.version, snapshot.h, snapshot.c, ttl_seconds))


def attaching(session: str, done: int | None) -> Call[Progress]:
    """Find a session that is open; done is the last step whose answer is held, if an answer of a later one was lost."""

    def read(body: bytes) -> Progress:
        progress = Progress.read(body)
        return progress if done is None else replace(progress, done=done)

    return Call("GET", _path(session), read)


def _path(session: str) -> str:
    return f"/cell/sessions/{quote(session, safe='')}"


class SessionView:
    """What a session tells of itself, blocking or not."""

    def __init__(self, progress: Progress, *, keep: bool) -> None:
        self._progress = progress
        self._keep = keep

    @property
    def id(self) -> str:
        """What `Client.attach` takes. Whoever has it and the key can go on with the session."""
        return self._progress.session

    @property
    def model(self) -> str:
        """The model that it runs."""
        return self._progress.model

    @property
    def version(self) -> str:
        """The version that it runs, to its end."""
        return self._progress.version

    @property
    def done(self) -> int:
        """Number of the last step that was answered."""
        return self._progress.done
