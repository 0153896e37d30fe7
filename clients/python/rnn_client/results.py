"""What forwards and steps give back: named arrays.

Letters: B rows, T time steps, L layers, D directions, H hidden size, P width of a hidden state, O outputs of the head.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from rnn_client.tensors import Floats

Steps = TypeVar("Steps", Floats, list[Floats])
"""Values of every time step: (B,T,·) or (T,·) for an array of inputs, a list of (T,·) for a list."""


@dataclass(frozen=True)
class Result:
    """Arrays by name, and what ran. Asking for an array that was not returned raises AttributeError."""

    arrays: Mapping[str, Any]
    model: str
    version: str

    def _array(self, name: str) -> Any:
        try:
            return self.arrays[name]
        except KeyError:
            held = ", ".join(self.arrays) or "no arrays"
            raise AttributeError(f"{name} was not returned; the reply holds {held}") from None


class ForwardResult(Result, Generic[Steps]):
    """What whole sequences gave."""

    @property
    def outputs(self) -> Steps:
        """(B,T,D·P): hidden state of the last layer at each step; zeros past a row's length."""
        value: Steps = self._array("outputs")
        return value

    @property
    def predictions(self) -> Steps:
        """(B,T,O): the linear head over outputs."""
        value: Steps = self._array("predictions")
        return value

    @property
    def last(self) -> Floats:
        """(B,D·P): outputs at each row's own last step."""
        value: Floats = self._array("last")
        return value

    @property
    def h_n(self) -> Floats:
        """(L·D,B,P): final hidden state of every layer."""
        value: Floats = self._array("h_n")
        return value

    @property
    def c_n(self) -> Floats:
        """(L·D,B,H): final cell state of every layer of an LSTM."""
        value: Floats = self._array("c_n")
        return value


@dataclass(frozen=True)
class StepResult(Result):
    """What one step gave, or k steps together. step is the number of the last one in its session, 0 without one."""

    step: int = 0

    @property
    def outputs(self) -> Floats:
        """(P), of a batch (B,P), of k steps (k,P): hidden state of the last layer."""
        value: Floats = self._array("outputs")
        return value

    @property
    def predictions(self) -> Floats:
        """(O), of a batch (B,O), of k steps (k,O): the linear head over outputs."""
        value: Floats = self._array("predictions")
        return value

    @property
    def h(self) -> Floats:
        """The hidden state of every layer after the last step."""
        value: Floats = self._array("h")
        return value

    @property
    def c(self) -> Floats:
        """The cell state of every layer after the last step, LSTM only."""
        value: Floats = self._array("c")
        return value
