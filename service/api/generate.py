"""POST /rnn/generate: a context in, and how the model goes on by itself, whole or line by line."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from service.api.documents import accepted, aside
from service.api.forward import ModelHandler
from service.api.generate_call import GenerateCall
from service.api.negotiation import FORMATS, NDJSON, SAFETENSORS
from service.api.request import Reply, Request
from service.api.requests import GenerateRequest
from service.api.shapes import invalid
from service.api.stepping import refuse_another_model, with_session
from service.errors import ClientGone
from service.sessions.exactly_once import SessionSteps
from service.sessions.lifecycle import Session, Sessions


@dataclass(frozen=True, slots=True)
class Generate(ModelHandler):
    sessions: Sessions
    session_steps: SessionSteps
    max_steps: int

    async def __call__(self, request: Request) -> Reply:
        document, came_as = await self.documents.decode(request)
        session: Session | None = None
        if "session" in document or b"x-session-id" in request.headers:
            document = with_session(request, document)
            session = await self.sessions.use(document["session"], request.session_owner)
        model = session.model if session else self.inference.registry.resolve_fields(document)
        asked, kind = accepted(GenerateRequest, request, document, came_as, model, (*FORMATS, NDJSON))
        if asked.steps > self.max_steps:
            raise invalid(f"steps is {asked.steps}; the limit is {self.max_steps}", "steps")
        request.streams = kind == NDJSON  # its client reads as slowly as it wants
        call = await aside(asked.inputs.size, GenerateCall, asked, model, self.limits, kind == SAFETENSORS)
        request.rows = len(call.generation.inputs)
        if session:
            refuse_another_model(model, asked.model, asked.version)
            call.before = -1 + await self.session_steps.generate(
                session, call.generation, asked.step, call.digest(), call.check, request, request.deadline()
            )
            request.steps = call.generation.step
        elif kind == NDJSON:
            return Reply(200, NDJSON.encode(), self._stream(request, call))
        else:
            async with aclosing(self._run(request, call)) as turns:
                async for _ in turns:
                    pass
            await aside(call.values, call.check)
        if kind == NDJSON:
            return Reply(200, NDJSON.encode(), _lines(call))
        fields = await aside(call.values, call.reply)
        return Reply(200, kind.encode(), await self.documents.encode(request, fields, kind))

    async def _run(self, request: Request, call: GenerateCall, *, by_turn: bool = False) -> AsyncGenerator[None, None]:
        """Run the context, and then the generation; stops after it, or by_turn after each turn."""
        model, context, generation = call.model, call.context, call.generation
        deadline = request.deadline()
        if context.lengths.any():
            timings = await self.inference.run(model, context, deadline, request.hung_up)
            request.book(timings)
            deadline = None
        generation.begin(context.h, context.c)
        turns = self.inference.generate(model, generation, deadline, request.hung_up, by_turn=by_turn)
        async with aclosing(turns):
            async for timings in turns:
                request.book(timings)
                running = generation.live * generation.step
                request.steps = context.steps + running + int(generation.counts.sum())
                yield

    async def _stream(self, request: Request, call: GenerateCall) -> AsyncGenerator[bytes, None]:
        """The lines of each turn, after it."""
        try:
            async with aclosing(self._run(request, call, by_turn=True)) as turns:
                async for _ in turns:
                    async for text in _lines(call):
                        yield text
                    await aside(call.values, call.check)  # after what is finite has been sent
        except ClientGone:
            raise
        except Exception:
            async for text in _lines(call):  # what had run before the error
                yield text
            raise


async def _lines(call: GenerateCall) -> AsyncGenerator[bytes, None]:
    for text in call.lines(await aside(call.values, call.not_finite)):
        yield text
        await asyncio.sleep(0)  # others run between the pieces
