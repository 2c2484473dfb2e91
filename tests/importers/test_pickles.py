"""Pickled weights: every protocol is read, and nothing of a hostile file ever runs."""

from __future__ import annotations

import builtins
import collections
import os
import pickle
import pickle as op
import struct
import time
import tracemalloc

import numpy as np
import pytest

from kmrcnn.importers import pickle_machine, pickle_values
from kmrcnn.importers.file_kind import file_kind
from kmrcnn.importers.pickles import BrokenWeightFileError, UnsafePickleError, read_pickle_file
from tests.importers.payloads import REFUSALS, Runs, name, pickled, python2_array, text, touch, tuple_of

pytestmark = pytest.mark.once

_RNG = np.random.default_rng(0)
ARRAYS = {
    "conv1_w": _RNG.normal(size=(4, 3, 7, 7)).astype("float32"), "empty": np.zeros((0, 3), "float16"),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)), "big_endian": np.arange(300, dtype=">i4"),
    "zero_d": np.array(5), "flags": np.array([True, False]), "strided": np.arange(1000)[::2],
    "text": np.array(["ab", "c"]), "bytes": np.array([b"ab", b"c"]), "scalar": np.float32(3),
}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "weights.pkl"


def _assert_same(found, wanted) -> None:
    assert set(found) == set(wanted)
    for key, array in wanted.items():
        np.testing.assert_array_equal(found[key], array)
        assert found[key].dtype == array.dtype.newbyteorder("=") and found[key].shape == array.shape


@pytest.mark.parametrize("protocol", range(6))
def test_python_3_files_of_every_protocol(path, protocol):
    plain = {"cfg": "MODEL: ä\n" * 200, "list": [1, -5, 2**40, 1.5, None, True, (1, (2, 3))], "bytes": b"ab",
             "many": list(range(2000))}
    content = {"blobs": ARRAYS, **plain, "ordered": collections.OrderedDict(b=1, a=2),
               "default": collections.defaultdict(list, {"x": [1]}), "counter": collections.Counter([3, 3])}
    path.write_bytes(pickle.dumps(content, protocol))
    assert file_kind(path) == "pickle"
    found = read_pickle_file(path)
    _assert_same(found.pop("blobs"), ARRAYS)
    assert {key: found[key] for key in plain} == plain
    assert type(found["ordered"]) is dict and list(found["ordered"].items()) == [("b", 1), ("a", 2)]
    assert found["default"] == {"x": [1]} and found["counter"] == {3: 2}


@pytest.mark.parametrize("protocol", [0, 2])
def test_python_2_files(path, protocol):
    array = np.arange(-300, 300, dtype="<f4").reshape(20, 30)
    head = b"" if protocol == 0 else op.PROTO + b"\x02"
    path.write_bytes(head + op.MARK + op.STRING + b"'w\\xe9'\n" + python2_array(array, protocol) + op.DICT + op.STOP)
    assert file_kind(path) == "pickle"
    _assert_same(read_pickle_file(path), {"w\xe9": array})


def test_arrays_are_views_of_the_file_that_never_change_it(path):
    path.write_bytes(pickled(python2_array(np.zeros(1000, "<f4"))))
    before = path.read_bytes()
    array = read_pickle_file(path)
    array[:] = 1
    assert path.read_bytes() == before and array.base is not None


def test_an_array_that_occurs_twice_is_one_array(path):
    array = np.arange(3)
    path.write_bytes(pickle.dumps([array, {"again": array}]))
    found = read_pickle_file(path)
    assert found[0] is found[1]["again"]


CALLS = {
    "os.mkdir": touch,
    "eval": lambda path: Runs(eval, f"__import__('os').mkdir({str(path)!r})"),
    "exec": lambda path: Runs(exec, f"import os; os.mkdir({str(path)!r})"),
    "in a list": lambda path: [1, {"a": touch(path)}],
    "as a key": lambda path: {touch(path): 1},
    "in an object array": lambda path: np.array([touch(path), 1], dtype=object),
    "in an object scalar": lambda path: np.array(touch(path), dtype=object),
    "in an ordered dict": lambda path: collections.OrderedDict(a=touch(path)),
    "through map": lambda path: Runs(map, os.mkdir, [str(path)]),
}


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("call", CALLS)
def test_calls_never_run(path, tmp_path, call, protocol):
    made = tmp_path / "made"
    path.write_bytes(pickle.dumps({"w": np.zeros(3), "x": CALLS[call](made)}, protocol))
    with pytest.raises(UnsafePickleError, match=r"weights\.pkl: the pickle (wants '\w+\.\w+': only|.*dtype 'O8')"):
        read_pickle_file(path)
    assert not made.exists()


def test_the_payload_is_live(path, tmp_path):
    """The tests above could not fail if Python's own unpickler did not run these calls."""
    pickle.loads(pickle.dumps(CALLS["in an object array"](tmp_path / "made"), 2))
    assert (tmp_path / "made").exists()


def _stack_global(module: str, attribute: str) -> bytes:
    return text(module) + text(attribute) + op.STACK_GLOBAL


_MKDIR = name("os", "mkdir")
_DICT = name("collections", "OrderedDict") + op.EMPTY_TUPLE + op.REDUCE
_DTYPE = name("numpy", "dtype")
_RECONSTRUCT = name("numpy.core.multiarray", "_reconstruct")
HOSTILE = {
    "global by two lines": name("os", "mkdir") + tuple_of(text("made")) + op.REDUCE,
    "dotted name from numpy": _stack_global("numpy", "core.multiarray._reconstruct"),
    "dotted name from a dict": _stack_global("collections", "OrderedDict.fromkeys"),
    "dotted name to os": _stack_global("kmrcnn.importers.pickles", "os.mkdir"),
    "module with a dot less": _stack_global("numpy.core", "multiarray._reconstruct"),
    "attribute of an allowed class": _stack_global("numpy", "dtype.__class__"),
    "names that are no text": op.EMPTY_LIST + op.EMPTY_LIST + op.STACK_GLOBAL,
    "other numpy functions": name("numpy", "load") + tuple_of(text("x.npy")) + op.REDUCE,
    "numpy's test runner": name("numpy.testing._private.utils", "runstring"),
    "numpy's other array classes": _RECONSTRUCT + tuple_of(name("numpy", "memmap"), tuple_of(), text("b")) + op.REDUCE,
    "reconstruct something else": _RECONSTRUCT + tuple_of(_DTYPE, tuple_of(), text("b")) + op.REDUCE,
    "torch's loader": name("torch.storage", "_load_from_bytes"),
    "instance opcode": op.MARK + text("made") + op.INST + b"os\nmkdir\n",
    "instance opcode of an allowed class": op.MARK + op.INST + b"collections\nOrderedDict\n",
    "object opcode": op.MARK + name("collections", "OrderedDict") + op.OBJ,
    "new object": name("collections", "OrderedDict") + op.EMPTY_TUPLE + op.NEWOBJ,
    "new object with keywords": name("collections", "OrderedDict") + op.EMPTY_TUPLE + op.EMPTY_DICT + op.NEWOBJ_EX,
    "extension code": op.EXT1 + b"\x01", "long extension code": op.EXT4 + b"\x01\0\0\0",
    "persistent id": text("x") + op.BINPERSID, "persistent id as text": op.PERSID + b"x\n",
    "buffer outside": op.NEXT_BUFFER, "unknown opcode": b"\xf0",
    "call a string": text("os.mkdir") + tuple_of(text("made")) + op.REDUCE,
    "call a list": op.EMPTY_LIST + op.EMPTY_TUPLE + op.REDUCE,
    "call a factory": name("builtins", "list") + op.EMPTY_TUPLE + op.REDUCE,
    "call a class that is only a name": name("numpy", "ndarray") + op.EMPTY_TUPLE + op.REDUCE,
    "build a class": name("numpy", "ndarray") + op.EMPTY_DICT + op.BUILD,
    "build a function": _RECONSTRUCT + op.EMPTY_DICT + op.BUILD,
    "build a list": op.EMPTY_LIST + op.EMPTY_DICT + op.BUILD,
    "build a dict with slots": _DICT + tuple_of(op.NONE, op.EMPTY_DICT) + op.BUILD,
    "bare function": _RECONSTRUCT, "bare class": name("numpy", "ndarray"),
    "dtype of objects": _DTYPE + tuple_of(text("O8"), op.NEWFALSE, op.NEWTRUE) + op.REDUCE,
    "dtype of records": _DTYPE + tuple_of(text("f4,O"), op.NEWFALSE, op.NEWTRUE) + op.REDUCE,
    "dtype of a list": _DTYPE + tuple_of(op.EMPTY_LIST) + op.REDUCE,
    "dtype of a dict": _DTYPE + tuple_of(op.EMPTY_DICT) + op.REDUCE,
    "dtype with fields": _DTYPE + tuple_of(text("f4")) + op.REDUCE + tuple_of(
        op.BININT1 + b"\x03", text("<"), op.NONE, tuple_of(text("a")), op.EMPTY_DICT) + op.BUILD,
    "codec that runs": name("_codecs", "encode") + tuple_of(text("abc"), text("zip")) + op.REDUCE,
    "bytes of a number": name("builtins", "bytes") + tuple_of(op.BININT + b"\xff\xff\xff\x7f") + op.REDUCE,
    "array of a list": _RECONSTRUCT + tuple_of(name("numpy", "ndarray"), tuple_of(), text("b")) + op.REDUCE + tuple_of(
        op.BININT1 + b"\x01", tuple_of(op.BININT1 + b"\x01"), _DTYPE, tuple_of(text("f4")), op.REDUCE, op.NEWFALSE,
        op.EMPTY_LIST) + op.BUILD,
}
_ONLY_DAMAGED = {"bytes of a number"}


@pytest.mark.parametrize("case", HOSTILE)
def test_hand_made_tricks_are_refused(path, tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    path.write_bytes(pickled(HOSTILE[case]))
    with pytest.raises(BrokenWeightFileError if case in _ONLY_DAMAGED else UnsafePickleError, match=r"weights\.pkl"):
        read_pickle_file(path)
    assert not (tmp_path / "made").exists()


def test_extension_codes_are_not_looked_up(path, tmp_path):
    import copyreg
    copyreg.add_extension("os", "mkdir", 7)
    try:
        path.write_bytes(pickle.dumps(touch(tmp_path / "made"), 2).replace(name(os.mkdir.__module__, "mkdir"),
                                                                          op.EXT1 + b"\x07"))
        with pytest.raises(UnsafePickleError, match="EXT1"):
            read_pickle_file(path)
    finally:
        copyreg.remove_extension("os", "mkdir", 7)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("value", [type("Namespace", (), {}), ..., builtins.print, 1j, slice(1)], ids=repr)
def test_other_classes_are_refused_by_name(path, value):
    data = op.GLOBAL + b"argparse\nNamespace\n" if isinstance(value, type) else pickle.dumps(value, 2)[2:-1]
    path.write_bytes(pickled(data))
    with pytest.raises(UnsafePickleError, match=r"wants '(argparse\.Namespace|__builtin__\.\w+)'.*save its state dict"):
        read_pickle_file(path)


def _nested(count: int, wrap: bytes) -> bytes:
    return op.EMPTY_TUPLE + wrap * count


def _laughs(levels: int) -> bytes:
    """Lists of ten times the list before."""
    parts = [op.EMPTY_LIST, op.BINPUT, b"\0"]
    for level in range(levels):
        parts += [op.EMPTY_LIST, op.MARK, *[op.BINGET + bytes([level])] * 10, op.APPENDS, op.BINPUT, bytes([level + 1])]
    return b"".join(parts)


_LONG_TEXT = op.BINUNICODE + struct.pack("<I", 100_000) + b"x" * 100_000
_BIG_ENDIAN = python2_array(np.zeros(100_000, ">f4"))
BOMBS = {
    "memo index": op.NONE + op.LONG_BINPUT + b"\xff\xff\xff\xff" + op.LONG_BINGET + b"\xfe\xff\xff\xff",
    "bytes": op.BINBYTES8 + struct.pack("<Q", 2**40), "bytearray": op.BYTEARRAY8 + struct.pack("<Q", 2**40),
    "text": op.BINUNICODE8 + struct.pack("<Q", 2**62), "negative text": op.BINSTRING + struct.pack("<i", -5),
    "frame": op.FRAME + struct.pack("<Q", 2**40), "integer": op.LONG4 + struct.pack("<i", 2**31 - 1),
    "long integer": op.LONG4 + struct.pack("<i", 60_000) + b"\x7f" * 60_000,
    "digits": op.INT + b"9" * 100_000 + b"\n",
    "laughs": _laughs(40), "itself": op.EMPTY_LIST + op.BINPUT + b"\0" + op.BINGET + b"\0" + op.APPEND,
    "itself in a dict": op.EMPTY_DICT + op.BINPUT + b"\0" + op.NONE + op.BINGET + b"\0" + op.SETITEM,
    "deep": _nested(50_000, op.TUPLE1),
    "deep key": op.EMPTY_DICT + _nested(50_000, op.TUPLE1) + op.NONE + op.SETITEM,
    "list as a key": op.EMPTY_DICT + op.EMPTY_LIST + op.NONE + op.SETITEM,
    "encoded often": _LONG_TEXT + op.BINPUT + b"\0" + text("latin1") + op.BINPUT + b"\1" + op.MARK + (
        name("_codecs", "encode") + op.BINGET + b"\0" + op.BINGET + b"\1" + op.TUPLE2 + op.REDUCE) * 1000 + op.LIST,
    "copied often": op.EMPTY_LIST + op.MARK + (op.EMPTY_TUPLE + op.DUP + op.TUPLE2) * 20_000 + op.APPENDS + op.BINPUT
    + b"\0" + op.MARK + (name("collections", "OrderedDict") + op.BINGET + b"\0" + op.TUPLE1 + op.REDUCE) * 1000
    + op.LIST,
    "array larger than its bytes": python2_array(np.zeros((2, 3), "<f4")).replace(
        op.BININT + b"\x02\0\0\0", op.BININT + b"\xff\xff\xff\x7f"),
    "empty array of endless shape": python2_array(np.zeros((0, 7, 7, 7), "<f4")).replace(
        op.BININT + b"\x07\0\0\0", op.BININT + b"\xff\xff\xff\x7f"),
    "nothing": b"", "no such memo": op.BINGET + b"\x05", "no mark": op.APPENDS, "no dict": op.NONE * 3 + op.SETITEM,
    "half a pair": op.EMPTY_DICT + op.MARK + op.NONE + op.SETITEMS, "protocol": op.PROTO + b"\xff",
    "array without content": _RECONSTRUCT + tuple_of(name("numpy", "ndarray"), tuple_of(), text("b")) + op.REDUCE,
    "no line end": op.UNICODE + b"x" * 100,
}


@pytest.mark.parametrize("case", BOMBS)
def test_bombs_and_damage_are_refused_at_once(path, monkeypatch, case):
    monkeypatch.setattr(pickle_values, "_MAX_ITEMS", 50_000)  # Reaching a million takes a second.
    path.write_bytes(pickled(BOMBS[case]))
    tracemalloc.start()
    start = time.process_time()  # whatever else the machine does
    try:
        with pytest.raises(BrokenWeightFileError, match=r"weights\.pkl is damaged"):
            read_pickle_file(path)
        assert tracemalloc.get_traced_memory()[1] < 150e6
    finally:
        tracemalloc.stop()
    assert time.process_time() - start < 20


def test_endless_steps_end(path, monkeypatch):
    monkeypatch.setattr(pickle_machine, "_MAX_STEPS", 1000)
    path.write_bytes(pickled(op.EMPTY_SET * 2000))
    with pytest.raises(BrokenWeightFileError, match="more than 1000 steps"):
        read_pickle_file(path)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_every_cut_and_many_flipped_bytes_give_these_errors_or_a_value(path, protocol):
    good = pickle.dumps({"a": np.arange(6.0), "b": ["text", 1.5, (2, None)], "c": np.float32(2)}, protocol)
    rng = np.random.default_rng(protocol)
    for end in range(1, len(good), 3):
        path.write_bytes(good[:end])
        with pytest.raises(BrokenWeightFileError, match=r"weights\.pkl"):
            read_pickle_file(path)
    for _ in range(150):
        damaged = bytearray(good)
        for place in rng.integers(2, len(good), 3):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            read_pickle_file(path)
        except REFUSALS as error:
            assert "weights.pkl" in str(error)
