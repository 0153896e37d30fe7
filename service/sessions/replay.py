"""What a session keeps so that a repeated step is answered again: as little as the reply can be made from.

The reply of a single step is a function of the committed state, whose top layer is `outputs`: a digest of its inputs
tells a retry from another step, and only the head's predictions are kept beside it. Of several steps, and of streams,
the last ones are kept, as many as fit a limit, and the last block in any case.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from service.engine.interface import Floats
from service.sessions.state import decoded
from service.sessions.stepper import Steps
from service.spec import ModelSpec

_SINGLE, _BLOCKS = b"\x01", b"\x02"
_DIGEST_BYTES = 16
_HEAD = struct.Struct("<IQI")  # bytes of the block with this head, number of its first step, k


class NotKept(Exception):
    """The reply of a step is not kept any more, or never was one of this session."""


class OtherInputs(Exception):
    """The step of this number was done with other inputs. step is its number."""

    def __init__(self, step: int) -> None:
        super().__init__(f"step {step} was done with other inputs")
        self.step = step


@dataclass(slots=True)
class Block:
    """Steps that were committed together: inputs (k,I), results as in `Steps`, and the state after the last."""

    first: int
    inputs: Floats
    outputs: Floats
    predictions: Floats | None
    state: bytes

    @property
    def last(self) -> int:
        """Number of the last step."""
        return self.first + len(self.inputs) - 1

    def without(self, count: int) -> "Block":
        """The block without its first steps."""
        predictions = None if self.predictions is None else self.predictions[count:]
        return Block(self.first + count, self.inputs[count:], self.outputs[count:], predictions, self.state)

    def encoded(self) -> bytes:
        """The block as it is kept."""
        parts = [self.inputs.tobytes(), self.outputs.tobytes(), self.state]
        if self.predictions is not None:
            parts.insert(2, self.predictions.tobytes())
        size = _HEAD.size + sum(map(len, parts))
        return b"".join((_HEAD.pack(size, self.first, len(self.inputs)), *parts))


def kept_single(inputs: Floats, predictions: Floats | None) -> bytes:
    """What is kept of one step with inputs (1,I)."""
    kept = _SINGLE + _digest(inputs)
    return kept if predictions is None else kept + predictions.tobytes()


def kept_blocks(before: bytes, block: Block, limit: int, spec: ModelSpec) -> bytes:
    """What is kept after one more block: it, and of the steps before it the last that fit into limit bytes with it."""
    added = block.encoded()
    if before[:1] != _BLOCKS:
        return _BLOCKS + added
    begin, size = 1, len(before) + len(added) - 1
    step_bytes = 4 * (spec.input_size + spec.output_size + (spec.out_features or 0))
    while begin < len(before) and size > limit:
        block_bytes, _, count = _HEAD.unpack_from(before, begin)
        too_many = -(-(size - limit) // step_bytes)
        if too_many < count:
            rest = _block(before, begin, spec).without(too_many).encoded()
            return b"".join((_BLOCKS, rest, before[begin + block_bytes :], added))
        begin += block_bytes
        size -= block_bytes
    return _BLOCKS + before[begin:] + added


def replay(kept: bytes, spec: ModelSpec, done: int, state: bytes, first: int, inputs: Floats) -> list[Steps]:
    """The results of steps that were done: number `first` and on, with inputs (k,I), all of them before `done` + 1.

    kept and state are those of the session after step `done`. Where steps end within a block, the state after them is
    not known, and `Steps.h` is empty. Raises NotKept, or OtherInputs.
    """
    if kept[:1] == _SINGLE:
        return [_replay_single(kept, spec, done, state, first, inputs)]
    found: list[Steps] = []
    reached, end = first, first + len(inputs)
    for block in _blocks(kept, spec):
        if block.last < reached or reached == end:
            continue
        if block.first > reached:
            raise NotKept
        here, stop = reached - block.first, min(end - 1, block.last) - block.first + 1
        asked = inputs[reached - first : reached - first + stop - here]
        same = (block.inputs[here:stop].view(np.uint32) == asked.view(np.uint32)).all(axis=-1)  # NaN is what it is, too
        if not same.all():
            raise OtherInputs(reached + int(np.argmin(same)))
        whole = stop == len(block.inputs)
        h, c = decoded(spec, block.state) if whole else (np.empty((0, 1, 0), np.float32), None)
        predictions = None if block.predictions is None else block.predictions[here:stop]
        found.append(Steps(reached, block.outputs[here:stop], predictions, h, c))
        reached += stop - here
    if reached < end:
        raise NotKept
    return found


def _replay_single(kept: bytes, spec: ModelSpec, done: int, state: bytes, first: int, inputs: Floats) -> Steps:
    if first != done or len(inputs) != 1:
        raise NotKept
    begin = 1 + _DIGEST_BYTES
    if kept[1:begin] != _digest(inputs):
        raise OtherInputs(done)
    h, c = decoded(spec, state)
    predictions = np.frombuffer(kept, "<f4", offset=begin)[None] if spec.out_features else None
    return Steps(done, h[-1], predictions, h, c)


def _blocks(kept: bytes, spec: ModelSpec) -> Iterator[Block]:
    begin = 1
    while begin < len(kept):
        yield _block(kept, begin, spec)
        begin += _HEAD.unpack_from(kept, begin)[0]


def _block(kept: bytes, begin: int, spec: ModelSpec) -> Block:
    size, first, count = _HEAD.unpack_from(kept, begin)
    place, arrays = begin + _HEAD.size, []
    for width in (spec.input_size, spec.output_size, spec.out_features or 0):
        arrays.append(np.frombuffer(kept, "<f4", count * width, place).reshape(count, width))
        place += count * width * 4
    inputs, outputs, predictions = arrays
    return Block(first, inputs, outputs, predictions if spec.out_features else None, kept[place : begin + size])


def _digest(inputs: Floats) -> bytes:
    return blake2b(inputs.tobytes(), digest_size=_DIGEST_BYTES).digest()
