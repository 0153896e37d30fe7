"""What a session keeps, as bytes: its state, and what answers a repeated step.

Of a single step, whose `outputs` is the top layer of the committed state, a digest of the inputs and the predictions
are kept. Of several steps, and of streams, the last ones are kept, as many as fit a limit, and the last block always.
Of steps that were generated, all that was asked for is kept, and the seed.
"""

import struct
from hashlib import blake2b

import numpy as np

from service.engine.interface import Floats
from service.errors import StepConflict, StepOutOfOrder
from service.serving.generation import Generation
from service.sessions.stepper import Steps
from service.spec import ModelSpec
from service.stores.interface import Position

_SINGLE, _BLOCKS, _GENERATED = b"\x01", b"\x02", b"\x03"
_DIGEST_BYTES = 16
_HEAD = struct.Struct("<IQI")  # bytes of the block with this head, number of its first step, k

_GENERATION = struct.Struct("<16sQI")  # digest of the fields, seed, number of steps


def decode_state(spec: ModelSpec, state: bytes) -> tuple[Floats, Floats | None]:
    """Arrays h (L,1,P), and c (L,1,H) of an LSTM; they may be written to."""
    values = np.frombuffer(state, "<f4").astype(np.float32)
    split = spec.num_layers * spec.state_size
    h = values[:split].reshape(spec.num_layers, 1, spec.state_size)
    return h, values[split:].reshape(spec.num_layers, 1, spec.hidden_size) if spec.has_cell_state else None


def encode_state(h: Floats, c: Floats | None) -> bytes:
    return h.tobytes() if c is None else h.tobytes() + c.tobytes()


def zero_state(spec: ModelSpec) -> bytes:
    return bytes(4 * spec.num_layers * (spec.state_size + spec.has_cell_state * spec.hidden_size))


def _encode(inputs: Floats, steps: Steps) -> bytes:
    """A block: steps that were committed together, their inputs (k,I), and the state after the last."""
    arrays = [inputs, steps.outputs] if steps.predictions is None else [inputs, steps.outputs, steps.predictions]
    body = b"".join(array.tobytes() for array in arrays) + encode_state(steps.h, steps.c)
    return _HEAD.pack(_HEAD.size + len(body), steps.first, steps.count) + body


def _decode(kept: bytes, begin: int, spec: ModelSpec) -> tuple[Floats, Steps]:
    size, first, count = _HEAD.unpack_from(kept, begin)
    place, arrays = begin + _HEAD.size, []
    for width in _widths(spec):
        arrays.append(np.frombuffer(kept, "<f4", count * width, place).reshape(count, width))
        place += count * width * 4
    inputs, outputs, predictions = arrays
    h, c = decode_state(spec, kept[place : begin + size])
    return inputs, Steps(first, outputs, predictions if spec.step_predictions else None, h, c)


def _widths(spec: ModelSpec) -> tuple[int, int, int]:
    return spec.in_features, spec.output_size, spec.step_predictions


def step_bytes(spec: ModelSpec) -> int:
    """The size of a step that is a block of its own."""
    return _HEAD.size + 4 * sum(_widths(spec)) + len(zero_state(spec))


def keep_one(inputs: Floats, steps: Steps) -> bytes:
    kept = _SINGLE + _digest(inputs)
    return kept if steps.predictions is None else kept + steps.predictions.tobytes()


def keep_steps(before: bytes, inputs: Floats, steps: Steps, limit: int, spec: ModelSpec) -> bytes:
    """What is kept after more steps: they, and of those before them the last that fit into limit bytes with them."""
    added = _encode(inputs, steps)
    if before[:1] != _BLOCKS:
        return _BLOCKS + added
    begin, surplus = 1, len(before) - 1 + len(added) - limit
    while begin < len(before) and surplus > 0:
        size, _, count = _HEAD.unpack_from(before, begin)
        cut = -(-surplus // (4 * sum(_widths(spec))))
        if cut < count:
            old_inputs, old = _decode(before, begin, spec)
            return _BLOCKS + _encode(old_inputs[cut:], old.part(cut, count)) + before[begin + size :] + added
        begin += size
        surplus -= size
    return _BLOCKS + before[begin:] + added


def replay(position: Position, spec: ModelSpec, first: int, inputs: Floats) -> list[Steps]:
    """The results of steps that a session at this position has done: number `first` and on, with inputs (k,I).

    Raises StepConflict for other inputs, StepOutOfOrder if the results are not kept.
    """
    kept = position.replies
    if kept[:1] == _SINGLE and first == position.step:
        begin = 1 + _DIGEST_BYTES
        if kept[1:begin] != _digest(inputs):
            raise _other_inputs(first, position)
        h, c = decode_state(spec, position.state)
        predictions = np.frombuffer(kept, "<f4", offset=begin)[None] if spec.step_predictions else None
        return [Steps(first, h[-1], predictions, h, c)]
    done: list[Steps] = []
    begin, reached, end = 1, first, first + len(inputs)
    while kept[:1] == _BLOCKS and begin < len(kept) and reached < end:
        kept_inputs, steps = _decode(kept, begin, spec)
        begin += _HEAD.unpack_from(kept, begin)[0]
        here, stop = reached - steps.first, min(end - steps.first, steps.count)
        if here < 0:
            break
        if here >= stop:
            continue
        asked = inputs[reached - first :][: stop - here]
        # As bits, NaN equals itself.
        same = (kept_inputs[here:stop].view(np.uint32) == asked.view(np.uint32)).all(axis=-1)
        if not same.all():
            raise _other_inputs(reached + int(np.argmin(same)), position)
        done.append(steps.part(here, stop))
        reached += stop - here
    if reached < end:
        raise out_of_order(first, position, f", and the reply of step {first} is not kept any more")
    return done


def keep_generation(generation: Generation, digest: bytes) -> bytes:
    """What is kept of a generation of one row that has ended."""
    seed = int(generation.sampling.seeds[0]) if generation.sampling else 0
    arrays = [values[0, : generation.step].tobytes() for values in generation.results.values()]
    return _GENERATED + _GENERATION.pack(digest, seed, generation.step) + b"".join(arrays)


def replay_generation(position: Position, generation: Generation, first: int, digest: bytes) -> None:
    """Fill a generation that has begun, from the state of this position, with the one that has ended here.

    first is the number of its first step. Raises StepConflict, StepOutOfOrder.
    """
    kept = position.replies
    if kept[:1] != _GENERATED:
        raise _other_inputs(first, position) if first == position.step else out_of_order(first, position)
    was, seed, steps = _GENERATION.unpack_from(kept, 1)
    if first != position.step + 1 - steps:
        raise out_of_order(first, position)
    if was != digest:
        raise _other_inputs(first, position)
    if generation.sampling:
        generation.sampling.seeds[:] = seed
    begin = 1 + _GENERATION.size
    for values in generation.results.values():
        row = values[0, :steps]
        row[...] = np.frombuffer(kept, row.dtype, row.size, begin).reshape(row.shape)
        begin += row.nbytes
    generation.step, generation.live = steps, 0
    generation.counts[:] = steps


def out_of_order(step: int, position: Position, reason: str = "") -> StepOutOfOrder:
    expected = position.step + 1
    return StepOutOfOrder(f"step is {step}; this session expects {expected}{reason}", expected)


def _other_inputs(step: int, position: Position) -> StepConflict:
    return StepConflict(f"step {step} was done with other inputs; this session expects {position.step + 1}")


def _digest(inputs: Floats) -> bytes:
    return blake2b(inputs.tobytes(), digest_size=_DIGEST_BYTES).digest()
