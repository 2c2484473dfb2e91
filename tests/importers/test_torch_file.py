"""Files of torch.save in both formats, against torch itself, and the same files damaged or hostile."""

from __future__ import annotations

import collections
import os
import pickle as op
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest

from kmrcnn.importers.file_kind import file_kind
from kmrcnn.importers.pickles import BrokenWeightFileError, UnsafePickleError
from kmrcnn.importers.torch_file import read_torch_file, write_torch_file
from tests.importers.payloads import (
    REFUSALS,
    integer,
    name,
    pickled,
    tensor,
    text,
    touch,
    tuple_of,
    write_stream,
    write_zip,
)

pytestmark = pytest.mark.once

SIX = np.arange(6, dtype="<f4").tobytes()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "weights.pth"


def _tensors(torch) -> dict:
    torch.manual_seed(0)
    base = torch.randn(10, 8)
    narrow = torch.randn(7).bfloat16()
    return collections.OrderedDict(
        plain=torch.randn(3, 4, 2), transposed=base.t(), part=base[2:5, 1::2], flipped=base.flip(0), row=base[9],
        scalar=torch.tensor(3.5), empty=torch.zeros(0, 4), empty_part=base[10:], half=torch.randn(5).half(),
        brain=narrow, brain_part=narrow[1:3], double=torch.randn(2).double(), long=torch.arange(5),
        int=torch.arange(5).int(), short=torch.arange(5).short(), char=torch.arange(-2, 3).to(torch.int8),
        byte=torch.arange(5).byte(), bool=torch.tensor([True, False]), complex=torch.randn(3, dtype=torch.complex64),
        expanded=torch.ones(3).expand(4, 3), parameter=torch.nn.Parameter(torch.randn(2, 2)),
        channels_last=torch.randn(1, 3, 4, 5).to(memory_format=torch.channels_last))


def _numpy(torch, tensor) -> np.ndarray:
    tensor = tensor.detach()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _assert_same(torch, found: dict, wanted: dict) -> None:
    assert list(found) == list(wanted)
    for key, value in wanted.items():
        np.testing.assert_array_equal(found[key], _numpy(torch, value))
        assert found[key].dtype == _numpy(torch, value).dtype and type(found[key]) is np.ndarray


@pytest.mark.parametrize(("zipped", "protocol"), [(True, 2), (False, 2), (True, 4), (False, 4)])
def test_what_torch_saves(path, zipped, protocol):
    torch = pytest.importorskip("torch")
    tensors = _tensors(torch)
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    optimizer = torch.optim.SGD(module.parameters(), 0.1, momentum=0.9)
    module(torch.zeros(1, 3, 8, 8)).sum().backward()
    optimizer.step()
    content = {"model": tensors, "module": module.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3,
               "dtype": torch.float32, "device": torch.device("cuda", 0), "size": torch.Size([1, 2]),
               "numpy": np.arange(3), "number": np.float64(3)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    assert file_kind(path) == ("torch_zip" if zipped else "torch_legacy")
    found = read_torch_file(path)
    _assert_same(torch, found["model"], tensors)
    _assert_same(torch, found["module"], module.state_dict())
    momentum = found["optimizer"]["state"][0]["momentum_buffer"]
    np.testing.assert_array_equal(momentum, optimizer.state_dict()["state"][0]["momentum_buffer"].numpy())
    assert found["optimizer"]["param_groups"][0]["lr"] == 0.1 and found["epoch"] == 3 and found["number"] == 3
    assert (found["dtype"], found["device"], found["size"]) == ("torch.float32", "cuda:0", (1, 2))
    np.testing.assert_array_equal(found["numpy"], np.arange(3))
    assert np.shares_memory(found["model"]["transposed"], found["model"]["part"])


def test_dtypes_without_a_storage_class_of_their_own(path):
    torch = pytest.importorskip("torch")
    content = {"unsigned": torch.arange(7).to(torch.uint16)[2:]}
    torch.save(content, path)
    _assert_same(torch, read_torch_file(path), content)
    torch.save({"float8": torch.zeros(3).to(torch.float8_e4m3fn)}, path)
    with pytest.raises(UnsafePickleError, match=r"torch\.float8_e4m3fn"):
        read_torch_file(path)


def test_files_written_without_checksums(path):
    torch = pytest.importorskip("torch")
    content = {"w": torch.randn(100)}
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(content, path)
    finally:
        torch.serialization.set_crc32_options(True)
    _assert_same(torch, read_torch_file(path), content)


@pytest.mark.parametrize("kind", ["CudaFloat", "old"])
def test_tensors_on_a_gpu_and_views_of_old_files(path, kind):
    """Files of 2017 and 2018: views beside the storage, classes of torch.cuda."""
    value = tensor((2, 2), (2, 1), view=tuple_of(text("view"), integer(1), integer(5))).replace(text("cpu"),
                                                                                             text("cuda:3"))
    if kind == "CudaFloat":
        value = value.replace(name("torch", "FloatStorage"), name("torch.cuda", "FloatStorage"))
    write_stream(path, pickled(op.EMPTY_DICT, text("w"), value, op.SETITEM), {"0": (6, SIX)})
    np.testing.assert_array_equal(read_torch_file(path)["w"], [[1, 2], [3, 4]])


def test_big_endian_files(path):
    write_zip(path, pickled(tensor((2, 3), (3, 1))), prefix="model_final", _0=np.arange(6, dtype=">f4").tobytes())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("model_final/byteorder", b"big")
    np.testing.assert_array_equal(read_torch_file(path), np.arange(6).reshape(2, 3))


def test_writing_to_arrays_does_not_change_the_file(path):
    write_zip(path, pickled(tensor((6,), (1,))), _0=SIX)
    before = path.read_bytes()
    array = read_torch_file(path)
    array[:] = 7
    assert path.read_bytes() == before and array.base is not None


def test_torch_reads_what_is_written(path):
    rng = np.random.default_rng(0)
    arrays = {f"{kind}.weight": rng.integers(0, 2, (2, 3)).astype(kind)
              for kind in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "?", "c8", "c16", ">f4")}
    arrays |= {"scalar": np.array(3.0), "empty": np.zeros((0, 4)), "strided": rng.normal(size=(4, 6))[::2, ::3].T}
    write_torch_file(path, arrays)
    found = read_torch_file(path)
    assert list(found) == list(arrays) and file_kind(path) == "torch_zip" and os.listdir(path.parent) == [path.name]
    for key, array in arrays.items():
        np.testing.assert_array_equal(found[key], array)
        assert found[key].dtype == array.dtype.newbyteorder("=")
        assert found[key].size == 0 or array.dtype == bool or found[key].ctypes.data % 64 == 0  # Views of the file.
    torch = pytest.importorskip("torch")
    for mapped in (False, True):
        loaded = torch.load(path, weights_only=True, mmap=mapped)
        assert type(loaded) is collections.OrderedDict
        _assert_same(torch, {key: value.numpy() for key, value in loaded.items()}, loaded)
        for key, array in arrays.items():
            np.testing.assert_array_equal(loaded[key].numpy(), array)
            assert loaded[key].shape == array.shape


def test_nothing_is_written_for_arrays_torch_does_not_know(path):
    path.write_bytes(b"old")
    for state in ({"a": np.array(["text"])}, {"a": np.array([{}])}, {1: np.zeros(2)}):
        with pytest.raises(TypeError, match=r"weights\.pth: .* is no tensor"):
            write_torch_file(path, state)
    assert path.read_bytes() == b"old" and os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("zipped", [True, False])
def test_hostile_objects_inside_never_run(path, tmp_path, zipped):
    torch = pytest.importorskip("torch")
    content = {"model": {"w": torch.zeros(2)}, "hook": touch(tmp_path / "made")}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UnsafePickleError, match=r"weights\.pth: the pickle wants 'posix\.mkdir'"):
        read_torch_file(path)
    assert not (tmp_path / "made").exists()
    torch.load(path, weights_only=False)
    assert (tmp_path / "made").exists()  # The payload was live.


def test_a_whole_pickled_module_is_refused_by_name(path):
    torch = pytest.importorskip("torch")
    for zipped in (True, False):
        torch.save(torch.nn.Linear(2, 2), path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(UnsafePickleError, match=r"wants 'torch\.nn\.modules\.linear\.Linear'.*state dict alone"):
            read_torch_file(path)


WRONG_TENSORS = {
    "reads beyond": tensor((2, 4), (4, 1)), "offset beyond": tensor((2,), (1,), offset=5),
    "stride beyond": tensor((2, 2), (5, 1)), "negative stride": tensor((2, 2), (-1, 1)),
    "negative offset": tensor((2,), (1,), offset=-1), "negative shape": tensor((-2,), (1,)),
    "shape without strides": tensor((2, 3), (1,)), "endless shape": tensor((2**40, 2**40), (0, 0)),
    "many repeated numbers": tensor((2**30,), (0,)), "endless empty shape": tensor((0, 2**40, 2**40), (1, 1, 1)),
    "negative count": tensor((2,), (1,), count=-1), "endless count": tensor((2,), (1,), count=2**60),
    "larger than its entry": tensor((7,), (1,), count=7), "other storage": tensor((2,), (1,), key="1"),
    "path as a key": tensor((2,), (1,), key="../data.pkl"),
    "two descriptions": tensor((2,), (1,)) + op.POP + tensor((2,), (1,), kind="IntStorage"),
    "too many axes": tensor((1,) * 40, (1,) * 40),
    "identity that is none": text("storage") + op.BINPERSID,
    "storage type that is none": tensor((2,), (1,)).replace(name("torch", "FloatStorage"), text("FloatStorage")),
    "tensor of no storage": name("torch._utils", "_rebuild_tensor") + tuple_of(
        text("x"), integer(0), tuple_of(), tuple_of()) + op.REDUCE,
    "parameter of no tensor": name("torch._utils", "_rebuild_parameter") + tuple_of(text("x")) + op.REDUCE,
    "size of no tuple": name("torch", "Size") + tuple_of(integer(3)) + op.REDUCE,
    "too few arguments": name("torch._utils", "_rebuild_tensor_v2") + op.EMPTY_TUPLE + op.REDUCE,
}


@pytest.mark.parametrize("case", WRONG_TENSORS)
def test_wrong_tensors_are_refused_in_both_formats(path, case):
    pickle = pickled(WRONG_TENSORS[case])
    for write in (lambda: write_zip(path, pickle, _0=SIX), lambda: write_stream(path, pickle, {"0": (6, SIX)})):
        write()
        tracemalloc.start()
        try:
            with pytest.raises(BrokenWeightFileError, match=r"weights\.pth is damaged"):
                read_torch_file(path)
            assert tracemalloc.get_traced_memory()[1] < 20e6
        finally:
            tracemalloc.stop()


def test_view_beyond_its_storage(path):
    view = tuple_of(text("view"), integer(4), integer(5))
    write_stream(path, pickled(tensor((3,), (1,), view=view)), {"0": (6, SIX)})
    with pytest.raises(BrokenWeightFileError, match="reads beyond its storage"):
        read_torch_file(path)


def test_many_brain_floats_of_one_storage_are_converted_once(path):
    count = 2**18
    one = tensor((count,), (1,), count=count, kind="BFloat16Storage")
    write_zip(path, pickled(op.MARK, one * 300, op.LIST), _0=bytes(2 * count))
    tracemalloc.start()
    found = read_torch_file(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found) == 300 and peak < 10 * count


def _compressed(path):
    write_zip(path, pickled(tensor((2**24,), (1,), count=2**24)), method=zipfile.ZIP_DEFLATED, _0=bytes(2**26))


def _compressed_pickle(path):
    write_zip(path, pickled(op.NONE + op.POP, op.NONE), method=zipfile.ZIP_DEFLATED)


def _patched(path, old: bytes, new: bytes, count: int = -1):
    write_zip(path, pickled(tensor((6,), (1,))), _0=SIX)
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new, count))


def _claims_more(path):
    """The directory gives the storage a size beyond the file."""
    _patched(path, struct.pack("<II", 24, 24), struct.pack("<II", 2**31, 2**31))


def _flipped(path):
    _patched(path, SIX, b"\x01" + SIX[1:])


def _twice(path):
    with pytest.warns(UserWarning, match="Duplicate"):
        write_zip(path, pickled(tensor((6,), (1,))), _0=SIX)
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("archive/data/0", SIX)


def _encrypted(path):
    _patched(path, b"PK\x01\x02\x14\x03\x14\x00\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01\x00")


def _endless_directory(path):
    write_zip(path, pickled(tensor((6,), (1,))), _0=SIX)
    data = bytearray(path.read_bytes())
    end = data.rfind(b"PK\x05\x06")
    data[end + 8:end + 12] = struct.pack("<HH", 60_000, 60_000)
    path.write_bytes(data)


def _torchscript(path):
    write_zip(path, pickled(op.NONE))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/constants.pkl", b"")


def _two_pickles(path):
    write_zip(path, pickled(op.NONE))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("other/data.pkl", b"")


def _strange_byte_order(path):
    write_zip(path, pickled(op.NONE))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/byteorder", b"middle")


@pytest.mark.parametrize(("damage", "message"), [
    (_compressed, "claims 67109.* bytes unpacked"), (_compressed_pickle, "compressed"),
    (_claims_more, "claims 214748"), (_flipped, "checksum is wrong"), (_twice, "twice"), (_encrypted, "encrypted"),
    (_endless_directory, "directory is damaged"), (_torchscript, "TorchScript"), (_two_pickles, "or several"),
    (_strange_byte_order, "byte order is b'middle'")])
def test_zip_tricks(path, damage, message):
    damage(path)
    tracemalloc.start()
    try:
        with pytest.raises(BrokenWeightFileError, match=rf"weights\.pth is damaged.*: .*{message}"):
            read_torch_file(path)
        assert tracemalloc.get_traced_memory()[1] < 5e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("zipped", [True, False])
def test_every_cut_is_refused_and_flipped_bytes_give_these_errors_or_a_value(path, zipped):
    content = pickled(op.EMPTY_DICT, op.MARK, text("a"), tensor((2, 3), (3, 1)), text("b"),
                      tensor((2,), (1,), key="1", count=2, kind="LongStorage"), op.SETITEMS)
    raw = np.arange(2).tobytes()
    if zipped:
        write_zip(path, content, _0=SIX, _1=raw)
    else:
        write_stream(path, content, {"0": (6, SIX), "1": (2, raw)})
    good = path.read_bytes()
    assert set(read_torch_file(path)) == {"a", "b"}
    for end in range(0, len(good), 7):
        path.write_bytes(good[:end])
        with pytest.raises(BrokenWeightFileError, match=r"weights\.pth"):
            read_torch_file(path)
    rng = np.random.default_rng(0)
    for _ in range(150):
        damaged = bytearray(good)
        for place in rng.integers(64, len(good), 3):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            read_torch_file(path)
        except REFUSALS as error:
            assert "weights.pth" in str(error)
