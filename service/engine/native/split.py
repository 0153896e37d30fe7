"""When and how a call of one row is split over threads; `team` is the native part of it."""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from service.engine.native.compiler import compiled
from service.engine.native.packing import aligned
from service.engine.native.processor import Processor
from service.engine.native.team import ENDED, LINE_WORDS, MOST_DELAYS, Helper, TeamWord
from service.engine.native.threads import Crew


@dataclass(frozen=True)
class SplitRule:
    """Where a split pays; docs/native-engine.md has the figures that these come from.

    - step_bytes: W_hh at least, so that a step takes far longer than its two meetings, of some 0.2 µs each
    - flops: a call at least, so that it takes far longer than to wake a thread
    - rest: calls on one thread after a split that brought nothing, because other work had the cores
    """

    step_bytes: int = 256 * 1024
    flops: int = 100_000_000
    rest: int = 64


class Split:
    """Runs calls as teams of a crew's threads, where that pays."""

    def __init__(self, rule: SplitRule, crew: Crew, processor: Processor) -> None:
        self._rule, self._crew = rule, crew
        self._code = compiled(Helper(processor))
        self._help = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)(self._code.address)
        self._resting = 0

    def pays(self, step_bytes: int, flops: int) -> bool:
        """Whether to split a call of one row: of so many bytes of W_hh, and so many operations in all."""
        if flops < self._rule.flops or step_bytes < self._rule.step_bytes or self._crew.size == 1:
            return False
        if self._resting:
            # Calls at the same time may count wrong by a few; nothing depends on it.
            self._resting = max(self._resting - 1, 0)
            return False
        return True

    def run(self, lead: Callable[[int], object]) -> None:
        """Call `lead` with the address of a team's words; meanwhile the crew's other threads help, as they come."""
        members = self._crew.size
        words = aligned(8 * (TeamWord.SEATS + LINE_WORDS * members)).view(np.int64)
        words[TeamWord.MEMBERS] = members
        address = int(words.ctypes.data)

        def lead_and_end() -> None:
            try:
                lead(address)
            finally:
                words[TeamWord.PHASE] = ENDED

        self._crew.run([lead_and_end, *(partial(self._help, address, member) for member in range(1, members))])
        if words[TeamWord.DELAYS] >= MOST_DELAYS or words[TeamWord.HELPED] < words[TeamWord.LEFT]:
            self._resting = self._rule.rest
