"""A team: threads that share out the columns of one row's sums, so that each reads a part of the weights only.

The leader goes through the whole schedule. Whenever a matrix is due it opens a phase, of as many shares as there are
members. Each helper has a seat, and the seat's share is done by who claims it first: the helper, or the leader when its
own is done.

    leader   ─open─ share 0 ──── wait ─ open ─ share 0 ─ claim and do share 1 ─ open ─ …
    helper        └ claim ─ share 1 ─┘       (has lost its core, or has not come yet)

So the leader never waits for a helper that has not come, and nobody waits while it holds a share: nothing can lock.
Who waits spins for a moment, then offers its core at every look. If the leader has to wait that long more than once it
ends the team, and does the rest alone. Shares are columns, so the order of every sum is what it is without a team.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum

from service.engine.native.ir import Function, Value, module
from service.engine.native.processor import Processor

SPINS = 2_500
"""Looks, some 40 ns each, before a core is offered: more than members of a team differ by while they have theirs."""

MOST_DELAYS = 2
"""Long waits before a leader ends its team. One is usual: a helper takes its first share when it comes, maybe late."""

ENDED = -1

LINE_WORDS = 8


class TeamWord(IntEnum):
    """Words of a team. Those that helpers spin on and those that are written meanwhile have cache lines of their own.

    - PHASE: how many phases were opened, or `ENDED`
    - MEMBERS: threads with the leader
    - DELAYS, HELPED, LEFT: long waits of the leader; shares that helpers did, and that they left to the leader
    - FUNCTION, ARGUMENTS: the phase's share function, and the words it reads
    - SEATS: a line for each helper: 2·p when phase p's share is done or the leader has it, 2·p - 1 while the helper has
    """

    PHASE = 0
    MEMBERS = LINE_WORDS
    DELAYS = 2 * LINE_WORDS
    HELPED = 2 * LINE_WORDS + 1
    LEFT = 2 * LINE_WORDS + 2
    FUNCTION = 3 * LINE_WORDS
    ARGUMENTS = 3 * LINE_WORDS + 1
    SEATS = 4 * LINE_WORDS


SHARE = {"arguments": "ptr", "part": "i64", "parts": "i64"}
"""Parameters of a share function: the words of arguments, which part of the columns to do, and of how many."""


@dataclass(frozen=True)
class Helper:
    """What a helper runs until the team ends. Compiled signature: help(ptr team, i64 member), member 1, 2 and so on."""

    processor: Processor
    name = "help"

    def text(self) -> str:
        """The module in LLVM's language."""
        f = Function("help", {"team": "ptr", "member": "i64"})
        seat, members = _seat(f, "%team", "%member"), f.word("%team", TeamWord.MEMBERS)
        last = f.variable("i64", 0)
        with f.repeat() as stop:
            seen = last.get()
            phase, _ = _wait(f, self.processor, "%team", lambda now: f.compare("ne", now, seen))
            stop(f.compare("eq", phase, ENDED))
            done = f.mul(phase, 2)
            with f.when(_claim(f, seat, f.sub(done, 2), f.sub(done, 1))):
                function = f.pointer("%team", TeamWord.FUNCTION)
                f.call_at(function, list(SHARE.values()), [_arguments(f, "%team"), "%member", members])
                _publish(f, seat, done)
            last.set(phase)
        return module([f], declarations(self.processor))


def lead(f: Function, processor: Processor, team: Value, share: Function, arguments: Sequence[Value]) -> None:
    """Emit a phase: all parts of `share`, whose arguments are pointers, by the leader and whoever comes."""
    words = _arguments(f, team)
    for number, argument in enumerate(arguments):
        f.store("ptr", argument, f.at(words, 8 * number), 8)
    last = f.word(team, TeamWord.PHASE)
    ended = f.compare("eq", last, ENDED)
    with f.when(ended):
        f.call(share, [words, 0, 1])
    with f.when(f.negated(ended)):
        f.store("ptr", f"@{share.name}", f.at(team, 8 * TeamWord.FUNCTION), 8)
        phase, members = f.add(last, 1), f.word(team, TeamWord.MEMBERS)
        _publish(f, team, phase)
        f.call(share, [words, 0, members])
        done = f.mul(phase, 2)
        with f.loop(members, first=1) as member:
            seat = _seat(f, team, member)
            left = _claim(f, seat, f.sub(done, 2), done)
            with f.when(left):
                f.call(share, [words, member, members])
            _count(f, team, TeamWord.LEFT, left)
            _count(f, team, TeamWord.HELPED, f.negated(left))
            _, was_long = _wait(f, processor, seat, lambda now: f.compare("eq", now, done))
            _count(f, team, TeamWord.DELAYS, was_long)
        with f.when(f.compare("sge", f.word(team, TeamWord.DELAYS), MOST_DELAYS)):
            _publish(f, team, ENDED)


def declarations(processor: Processor) -> list[str]:
    """What a module with one of these must declare."""
    return ["declare i32 @sched_yield()", f"declare void @{processor.pause.replace('i32 1', 'i32')}"]


def _arguments(f: Function, team: Value) -> Value:
    return f.at(team, 8 * TeamWord.ARGUMENTS)


def _seat(f: Function, team: Value, member: Value) -> Value:
    return f.at(team, f.add(f.mul(member, 8 * LINE_WORDS), 8 * (TeamWord.SEATS - LINE_WORDS)))


def _count(f: Function, team: Value, word: TeamWord, condition: Value) -> None:
    f.store("i64", f.add(f.word(team, word), f.select(condition, 1, 0)), f.at(team, 8 * word), 8)


def _publish(f: Function, word: Value, value: Value | int) -> None:
    """Change a word, after all that was written before."""
    f.do(f"store atomic i64 {value}, ptr {word} release, align 8")


def _claim(f: Function, seat: Value, old: Value, new: Value) -> Value:
    """Change a seat's word from `old` to `new`; an i1: whether it was `old`."""
    pair = f.value(f"cmpxchg ptr {seat}, i64 {old}, i64 {new} acq_rel acquire, align 8")
    return f.value(f"extractvalue {{ i64, i1 }} {pair}, 1")


def _wait(f: Function, processor: Processor, word: Value, holds: Callable[[Value], Value]) -> tuple[Value, Value]:
    """Wait until a condition holds for a word; its value then, and an i1: whether the core was offered."""
    looks, seen = f.variable("i64", 0), f.variable("i64", 0)
    with f.repeat() as stop:
        seen.set(f.value(f"load atomic i64, ptr {word} acquire, align 8"))
        stop(holds(seen.get()))
        looks.set(f.add(looks.get(), 1))
        f.do(f"call void @{processor.pause}")
        with f.when(f.compare("sge", looks.get(), SPINS)):
            f.value("call i32 @sched_yield()")
    return seen.get(), f.compare("sge", looks.get(), SPINS)
