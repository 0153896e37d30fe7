"""Pickles of untrusted files, read without executing anything: what would be made or called becomes a Record of it.

torch.load(weights_only=True) reads pickle protocol 2 alone, ends at each class that it does not know, and hashes keys
that may be made to take forever. This reads all protocols, and only ever makes what is in this file.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pickletools import anyobject, genops, opcodes
from typing import Any, BinaryIO

from service.models.importing.refusal import CheckpointRefused

MAX_OPCODES = 4_000_000
MAX_BYTES = 2**28
MAX_NAME = 1000
STORED = "a storage"  # Record of it; arguments are what torch.save calls it by
_DICTS = ("collections.OrderedDict", "collections.defaultdict", "builtins.dict")
_VALUES: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_CONSTANTS = {op.name for op in opcodes if op.arg and not op.stack_before and op.stack_after not in ([], [anyobject])}
_CONSTANTS |= _VALUES.keys()


@dataclass(slots=True, eq=False)
class Record:
    """A class or function by its name; or what it was called with, and the state and items that the result was given.

    arguments are None for the class or function itself.
    """

    name: str
    arguments: Any = None
    state: Any = None
    entries: dict[str | int, Any] = field(default_factory=dict)


class Unpickler:
    """Reads the pickles of a file one after the other; persistent has the ids of what is stored elsewhere."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._bytes = MAX_BYTES
        self._opcodes = MAX_OPCODES
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.persistent: list[Any] = []

    def load(self) -> Any:
        """The next pickle. Raises CheckpointRefused where it is too large, and anything else where it is damaged."""
        self.stack, self.marks, self.memo = [], [], {}
        for opcode, argument, _ in genops(self):  # type: ignore[arg-type]  # it calls read and readline alone
            self._opcodes -= 1
            if self._opcodes < 0:
                raise CheckpointRefused(f"the file's pickle has more than {MAX_OPCODES} instructions")
            if opcode.name in _CONSTANTS:
                self.stack.append(_VALUES.get(opcode.name, argument))
            elif opcode.name in _ACTIONS:
                _ACTIONS[opcode.name](self, argument)
            elif opcode.name not in ("PROTO", "FRAME", "STOP"):
                raise CheckpointRefused(f"the file's pickle has the instruction {opcode.name}, which is not read")
        return self.stack.pop()

    def read(self, size: int) -> bytes:
        """For genops."""
        self._bytes -= size
        if self._bytes < 0:
            raise CheckpointRefused(f"the file's pickle has more than {MAX_BYTES >> 20} MiB beside its tensors")
        return self._file.read(size)

    def readline(self) -> bytes:
        line = self._file.readline(2**16)
        self._bytes -= len(line)
        return line

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self, count: int) -> list[Any]:
        """The last values, the deepest first."""
        values = self.stack[-count:]
        del self.stack[-count:]
        return values

    def marked(self, _: Any = None) -> list[Any]:
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def put(self, key: int) -> None:
        self.memo[key] = self.stack[-1]

    def name_global(self, name: str) -> None:
        if len(name) > MAX_NAME:
            raise CheckpointRefused(f"the file's pickle names a class by more than {MAX_NAME} characters")
        self.push(Record(name.replace(" ", ".").replace("__builtin__", "builtins")))

    def keep_id(self, pid: Any) -> None:
        match pid:
            case ("storage", Record(), str(), _, int(), *_):
                self.persistent.append(pid)
                self.push(Record(STORED, pid))
            case ("module", Record() as module, *_):  # beside its source, in files of before 2020
                self.push(module)
            case _:
                raise CheckpointRefused("the file's pickle names something outside it that is no tensor")

    def call(self, callee: Any, arguments: Any) -> None:
        name = callee.name if isinstance(callee, Record) else type(callee).__name__
        self.push({} if name in _DICTS else Record(name, arguments))

    def instance(self, name: str) -> None:
        arguments = self.marked()
        self.name_global(name)
        self.call(self.stack.pop(), arguments)

    def build(self, _: Any) -> None:
        [state] = self.pop(1)
        if isinstance(self.stack[-1], Record):
            self.stack[-1].state = state

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        entries = target.entries if isinstance(target, Record) else target
        for key, value in zip(items[::2], items[1::2], strict=True):
            # To hash a nested tuple may take forever, and the interpreter's whole stack.
            entries[key if isinstance(key, str) else len(entries)] = value

    def add(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, Record):
            target.entries |= enumerate(items, len(target.entries))
        else:
            target.extend(items)

    def make_dict(self, _: Any) -> None:
        items = self.marked()
        self.push({})
        self.set_items(items)


_Action = Callable[[Unpickler, Any], Any]
_ACTIONS: dict[str, _Action] = {
    "MARK": lambda u, _: u.marks.append(len(u.stack)),
    "POP": lambda u, _: u.pop(1),
    "POP_MARK": Unpickler.marked,
    "DUP": lambda u, _: u.push(u.stack[-1]),
    "TUPLE1": lambda u, _: u.push(tuple(u.pop(1))),
    "TUPLE2": lambda u, _: u.push(tuple(u.pop(2))),
    "TUPLE3": lambda u, _: u.push(tuple(u.pop(3))),
    "TUPLE": lambda u, _: u.push(tuple(u.marked())),
    "EMPTY_DICT": lambda u, _: u.push({}),
    "DICT": Unpickler.make_dict,
    "SETITEM": lambda u, _: u.set_items(u.pop(2)),
    "SETITEMS": lambda u, _: u.set_items(u.marked()),
    **dict.fromkeys(("EMPTY_LIST", "EMPTY_SET"), lambda u, _: u.push([])),
    **dict.fromkeys(("LIST", "FROZENSET"), lambda u, _: u.push(u.marked())),
    "APPEND": lambda u, _: u.add(u.pop(1)),
    **dict.fromkeys(("APPENDS", "ADDITEMS"), lambda u, _: u.add(u.marked())),
    "GLOBAL": Unpickler.name_global,
    "STACK_GLOBAL": lambda u, _: u.name_global(".".join(part[: MAX_NAME + 1] for part in u.pop(2))),
    "INST": Unpickler.instance,
    "OBJ": lambda u, _: u.call((values := u.marked())[0], values[1:]),
    **dict.fromkeys(("REDUCE", "NEWOBJ"), lambda u, _: u.call(*u.pop(2))),
    "NEWOBJ_EX": lambda u, _: u.call(*u.pop(3)[:2]),
    "BUILD": Unpickler.build,
    "PERSID": Unpickler.keep_id,
    "BINPERSID": lambda u, _: u.keep_id(u.pop(1)[0]),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), Unpickler.put),
    "MEMOIZE": lambda u, _: u.put(len(u.memo)),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda u, key: u.push(u.memo[key])),
}
