"""Steps of sequences by the Open Inference Protocol: `sequence_id` names a session of the service."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from service.api.request import Request
from service.api.shapes import Limits, invalid, returned
from service.api.step import last_of, session_inputs, session_results
from service.api.stepping import STREAM_RETURNS, refuse_another_model
from service.api.v2.requests import STEP, InferRequest
from service.engine.interface import Floats
from service.serving.registry import ModelVersion
from service.sessions.exactly_once import Terms
from service.sessions.sequences import SequenceCall, Sequences
from service.wire.open_inference import Array


def is_of_sequence(asked: InferRequest, name: str) -> bool:
    """Whether a request for the model of this name names a sequence. Raises InvalidRequest."""
    said = asked.parameters
    if isinstance(said.sequence_id, int) and not 0 <= said.sequence_id < 2**64:
        raise invalid(f"sequence_id is {said.sequence_id}; expected 64 bits, or a string", "parameters", "sequence_id")
    if said.sequence_id and name.endswith(STEP):
        return True
    if said.sequence_id:
        raise invalid(f"sequence_id is given; steps of sequences go to {name}{STEP}", "parameters", "sequence_id")
    if said.sequence_start or said.sequence_end or said.step is not None:
        message = f"sequence_id is {said.sequence_id!r}, which is none; sequence_start, sequence_end and step need one"
        raise invalid(message, "parameters", "sequence_id")
    return False


@dataclass(frozen=True, slots=True)
class SequenceSteps:
    sequences: Sequences
    limits: Limits

    async def run(
        self,
        request: Request,
        model: ModelVersion,
        version: str | None,
        asked: InferRequest,
        arrays: Mapping[str, Array],
    ) -> tuple[dict[str, Any], dict[str, Floats]]:
        """Run a request's steps; version is what it asks for. Gives what the reply says beside the results, and these.

        Raises as `Sequences.run` does.
        """
        said, names = asked.parameters, [output.name for output in asked.outputs] or None
        if states := arrays.keys() - {"inputs"}:
            raise invalid(f"{min(states)} is given; a sequence has the state after its last step", min(states))

        def read(model: ModelVersion) -> Floats:
            refuse_another_model(model, None, version)
            inputs, _, _ = session_inputs(arrays["inputs"], names, model, self.limits)
            return inputs

        call = SequenceCall(
            *(request.owner, model, said.sequence_id, said.sequence_start, said.sequence_end, said.step)
        )
        terms = Terms(False, not {"h", "c"}.isdisjoint(names or ()), in_stream=False, book=request.book)
        model, ran = await self.sequences.run(call, read, terms, request.deadline(said.timeout / 1e6 or None))
        request.version, request.rows, request.steps = model.version, 1, len(arrays["inputs"])
        returns = returned(names, STREAM_RETURNS, model, by_step=True)
        results = session_results(ran, returns, several=True)
        for state in results.keys() & {"h", "c"}:
            results[state] = results[state].reshape(1, model.spec.states, -1)
        parameters = {"sequence_id": said.sequence_id, "step": last_of(ran)}
        return {"model_version": model.version, "parameters": parameters}, results
