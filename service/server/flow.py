"""Reading on from a connection: not while its own requests wait."""

import asyncio
from collections.abc import Sized

from uvicorn.protocols.http.flow_control import FlowControl


class PatientFlow(FlowControl):
    """Reads no further while requests that were pipelined wait for the one before them.

    uvicorn reads on after every reply, though hundreds of requests may have come with the last read and would heap up.
    """

    def __init__(self, transport: asyncio.Transport, pipeline: Sized) -> None:
        super().__init__(transport)
        self._pipeline = pipeline

    def resume_reading(self) -> None:
        """Read on, if nothing waits."""
        if not self._pipeline:
            super().resume_reading()
