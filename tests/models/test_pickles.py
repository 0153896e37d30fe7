"""Pickles that are hostile, and pickles that are sound: nothing is executed, and nothing takes long or much."""

import io
import pickle
import pickletools
import random
import subprocess
import sys
import zipfile
from contextlib import suppress

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from service.models.importing import pickles
from service.models.importing.pickles import Record, Unpickler
from service.models.importing.refusal import CheckpointRefused
from service.models.importing.tensors import read_tensors

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner) | st.tuples(*[inner] * 4)
    ),
)


def load(content: bytes):
    return Unpickler(io.BytesIO(content)).load()


def same(actual, expected) -> bool:
    """Bytes of old protocols come as a call of an encoder."""
    if isinstance(actual, Record):
        return isinstance(expected, bytes)
    if isinstance(expected, dict):
        return actual.keys() == expected.keys() and all(same(actual[key], expected[key]) for key in expected)
    if isinstance(expected, (list, tuple)):
        return type(actual) is type(expected) and len(actual) == len(expected) and all(map(same, actual, expected))
    return type(actual) is type(expected) and actual == expected


@given(value=PLAIN, protocol=st.integers(0, 5))
def test_plain_values_are_read_as_pickle_reads_them(value, protocol):
    assert same(load(pickle.dumps(value, protocol)), value)


@given(value=PLAIN, protocol=st.integers(0, 5), seed=st.integers(0, 99))
def test_damage_raises_and_ends(value, protocol, seed):
    rng, content = random.Random(seed), bytearray(pickle.dumps([value, print], protocol))
    for _ in range(3):
        content[rng.randrange(len(content))] = rng.randrange(256)
    before = set(sys.modules)
    with suppress(Exception):
        load(bytes(content))
    assert set(sys.modules) == before


def call(module, name, *arguments, how=pickle.REDUCE):
    """A pickle of protocol 0 that calls a function."""
    texts = b"".join(b"V" + argument.encode() + b"\n" for argument in arguments)
    if how == pickle.INST:
        return pickle.MARK + texts + pickle.INST + f"{module}\n{name}\n".encode() + pickle.STOP
    named = pickle.GLOBAL + f"{module}\n{name}\n".encode()
    if how == pickle.OBJ:
        return pickle.MARK + named + texts + pickle.OBJ + pickle.STOP
    if how == pickle.STACK_GLOBAL:
        named, how = b"V" + module.encode() + b"\nV" + name.encode() + b"\n" + pickle.STACK_GLOBAL, pickle.REDUCE
    return named + pickle.MARK + texts + pickle.TUPLE + how + pickle.STOP


HOW = [pickle.REDUCE, pickle.NEWOBJ, pickle.INST, pickle.OBJ, pickle.STACK_GLOBAL]


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize(("module", "name"), [("os", "mkdir"), ("posix", "mkdir"), ("builtins", "eval")])
@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_is_executed(tmp_path, how, module, name, zipped):
    made = tmp_path / "made"
    argument = f"__import__('os').mkdir('{made}')" if name == "eval" else str(made)
    content = call(module, name, argument, how=how)
    assert load(content).name == f"{module}.{name}"
    path = tmp_path / "model.pt"
    if zipped:
        torch.save({}, path)
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("model/data.pkl", content)
    else:
        path.write_bytes(content)
    try:
        read_tensors(path)
    except CheckpointRefused as refusal:
        assert str(refusal).isprintable()  # noqa: PT017
    assert not made.exists()
    if how == pickle.REDUCE:
        pickle.loads(content)  # and what it would have done
        assert made.exists()


def test_states_are_not_applied():
    """BUILD gives a state to a Record of an object, never to a function or class of this process."""
    content = (
        pickle.GLOBAL + b"torch._utils\n_rebuild_tensor_v2\n" + b"}V__defaults__\nVchanged\ns" + pickle.BUILD + b"."
    )
    assert load(content).state == {"__defaults__": "changed"}
    assert torch._utils._rebuild_tensor_v2.__defaults__ != "changed"


MAGIC = 0x1950A86A20F9469CFC6C  # what a file of torch.save began with, before it was a zip archive


def nested(count: int) -> bytes:
    """A tuple of twice the one before it, used as a key: to hash it takes 2 ** count steps."""
    return b"}" + b"N\x85" + b"2\x86" * count + b"Ns."


BOMBS = {
    "tuples that double, as a key": nested(200),
    "a million tuples in each other, as a key": b"}" + b")" + b"\x85" * 1_000_000 + b"Ns.",
    "lists that double": b"]" + b"q\x00ah\x00" * 1 + b"2a" * 1000 + b".",
    "memo far away": b"Nr\xff\xff\xff\xff.",
    "text that claims 2**60 bytes": b"\x8d" + (2**60).to_bytes(8, "little") + b".",
    "number that claims 2**31 bytes": b"\x8b" + (2**31 - 1).to_bytes(4, "little") + b".",
    "digits": b"L" + b"9" * 60_000 + b"L\n.",
    "class with a long name": b"X\x00\x00\x10\x00" + b"a" * 2**20 + b"22\x93.",
    "endless instructions": b"N0" * 3_000_000 + b".",
    "protocol of tomorrow": b"\x80\x09N.",
    "buffers": b"\x97.",
    "extension": b"\x82\x01.",
    "nothing on the stack": b"0000.",
    "no mark": b"t.",
    "dict that holds itself": b"}q\x00Vmodel\nh\x00s.",
    "persistent id that is no storage": b"}Q.",
    "storage with a tuple as its key": b"(Vstorage\nctorch\nFloatStorage\nN\x85" + b"2\x86" * 99 + b"Vcpu\nK\x01tQ.",
}


READ_ALL = """
import pathlib, resource, sys, time
from service.models.importing import refusal, tensors
resource.setrlimit(resource.RLIMIT_DATA, (2**31, 2**31))
for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    started = time.process_time()
    try: said = f"read {tensors.read_tensors(path).by_name}"
    except refusal.CheckpointRefused as error: said = f"refused {error}"
    print(path.stem, said, time.process_time() - started, sep="|")
"""


@pytest.mark.parametrize("zipped", [True, False])
def test_bombs_end_in_one_sentence(tmp_path, zipped):
    """In a process of its own, so that its memory can be limited and its end be seen."""
    for name, content in BOMBS.items():
        path = tmp_path / f"{name}.pt"
        if zipped:
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("model/data.pkl", content)
        else:
            path.write_bytes(b"".join(pickle.dumps(value, 2) for value in (MAGIC, 1001, {})) + content)
    command = [sys.executable, "-c", READ_ALL, tmp_path]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert ended.returncode == 0, ended.stderr
    results = [line.split("|") for line in ended.stdout.splitlines()]
    assert sorted(name for name, *_ in results) == sorted(BOMBS)
    for name, said, seconds in results:
        assert float(seconds) < 30, name
        assert said == "read {}" or (said.startswith("refused the file") and said.isprintable()), (name, said)


def test_file_of_a_terabyte(tmp_path):
    """A sparse file: most of it is not there."""
    path = tmp_path / "model.pt"
    with path.open("wb") as file:
        file.write(b"\x8d" + (2**39).to_bytes(8, "little"))
        file.truncate(2**40)
    with pytest.raises(CheckpointRefused, match="more than 256 MiB beside its tensors"):
        read_tensors(path)


@pytest.mark.parametrize("claimed", [b"K\xff\x85", b"J\xff\xff\xff\x7f\x85", b"J\xff\xff\xff\xff\x85"])
def test_tensor_beyond_its_storage(tmp_path, claimed):
    path = tmp_path / "model.pt"
    torch.save({"weight": torch.zeros(3)}, path)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    assert b"K\x03\x85" in entries["model/data.pkl"]
    entries["model/data.pkl"] = entries["model/data.pkl"].replace(b"K\x03\x85", claimed)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    with pytest.raises(CheckpointRefused, match="damaged"):
        read_tensors(path)


def test_instructions_are_all_known():
    """Those that are refused are those that need what is outside the file."""
    known = pickles._CONSTANTS | pickles._ACTIONS.keys() | {"PROTO", "FRAME", "STOP"}
    refused = {"EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "READONLY_BUFFER"}
    assert {opcode.name for opcode in pickletools.opcodes} == known | refused
