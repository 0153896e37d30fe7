"""What a client knows of one session."""

import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote


@dataclass
class Progress:
    """A session and the last step of it that was answered.

    replay_steps: how many of its latest steps the service can answer again to a stream; None if it did not say.
    streaming: whether a stream has steps in flight, so that the number of the next step is unknown.
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
        session: dict[str, Any] = json.loads(body)
        return cls(
            session["session"], session["model"], session["version"], session["step"], session.get("replay_steps")
        )

    @property
    def path(self) -> str:
        return session_path(self.session)

    def refuse_while_streaming(self) -> None:
        """Raise RuntimeError if a stream has steps in flight."""
        if self.streaming:
            raise RuntimeError("a stream of this session has steps in flight: close it first (contextlib.aclosing)")


def session_path(session: str) -> str:
    return f"/cell/sessions/{quote(session, safe='')}"
