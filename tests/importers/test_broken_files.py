"""Files that are no weight files, and HDF5 files that are damaged or lead elsewhere."""

from __future__ import annotations

import io
import json
import pickle
import struct
import tarfile
import tracemalloc
import zipfile

import h5py
import keras
import numpy as np
import pytest

from kmrcnn.importers.file_kind import file_kind
from kmrcnn.importers.matterport_h5 import load_weights, read_datasets, save_weights
from kmrcnn.importers.pickles import BrokenWeightFileError, read_pickle_file
from kmrcnn.importers.torch_file import read_torch_file
from tests.importers.payloads import pickled, tensor, write_zip

pytestmark = pytest.mark.once


def _tar() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("storages"))
    return stream.getvalue()


def _npz() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, w=np.zeros(3))
    return stream.getvalue()


_HEADER = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
OTHER_FILES = {
    "empty": (b"", "is empty"), "page": (b"\n<!DOCTYPE html><html>404", "HTML"), "xml": (b"<?xml?><Error/>", "HTML"),
    "safetensors": (struct.pack("<Q", len(_HEADER)) + _HEADER + bytes(4), "safetensors"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS"),
    "json": (b'{"model": 1}', "JSON"), "gzip": (b"\x1f\x8b\x08" + bytes(20), "gzip"), "tar": (_tar(), "tar file"),
    "npz": (_npz(), r"\.npz"), "text": (b"conv1 0.5 0.25", "starts with b'conv1"),
    "image": (b"\x89PNG\r\n\x1a\n" + bytes(9), "PNG"), "newer pickle": (b"\x80\x09N.", "starts with"),
}


@pytest.mark.parametrize("name", OTHER_FILES)
def test_other_files_are_named(tmp_path, name):
    content, message = OTHER_FILES[name]
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    for read in (file_kind, read_torch_file, read_pickle_file):
        with pytest.raises(BrokenWeightFileError, match=rf"weights\.pth.*{message}"):
            read(path)


def test_folders_absent_files_and_the_wrong_reader(tmp_path):
    for read in (file_kind, read_torch_file, read_pickle_file):
        with pytest.raises(FileNotFoundError, match=r"Weight file not found: .*nowhere\.pth"):
            read(tmp_path / "nowhere.pth")
        with pytest.raises(BrokenWeightFileError, match="is a folder"):
            read(tmp_path)
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({}))
    write_zip(tmp_path / "a.pth", pickled(tensor((6,), (1,))), _0=bytes(24))
    with h5py.File(tmp_path / "a.h5", "w", userblock_size=1024) as file:
        file["w"] = 1
    assert [file_kind(tmp_path / name) for name in ("a.pkl", "a.pth", "a.h5")] == ["pickle", "torch_zip", "hdf5"]
    with pytest.raises(BrokenWeightFileError, match=r"a\.pkl is no torch file but pickle"):
        read_torch_file(tmp_path / "a.pkl")
    with pytest.raises(BrokenWeightFileError, match=r"a\.h5 is no pickle but hdf5"):
        read_pickle_file(tmp_path / "a.h5")


def _model() -> keras.Model:
    image = keras.Input((4,), name="input_image")
    return keras.Model(image, keras.layers.Dense(3, name="dense")(image))


@pytest.fixture
def h5(tmp_path):
    path = tmp_path / "weights.h5"
    save_weights(_model(), path)
    return path


def _refused(path, message: str) -> None:
    """The file is refused by name, with little memory, and the model stays as it was."""
    model = _model()
    before = model.get_weights()
    tracemalloc.start()
    try:
        with pytest.raises(BrokenWeightFileError, match=rf"weights\.h5 is .*{message}"):
            load_weights(model, path, by_name=True)
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()
    for found, wanted in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("options", [{"chunks": (1024, 1024)}, {}, {"chunks": (1024, 1024), "compression": "gzip"}])
def test_datasets_that_claim_terabytes(h5, options):
    with h5py.File(h5, "a") as file:
        file.create_dataset("dense/dense/extra:0", (2**20, 2**20), "f4", **options)
    _refused(h5, r"'dense/dense/extra:0'.*claims far more")


def test_one_chunk_that_claims_gigabytes(h5):
    with h5py.File(h5, "a") as file:
        file.create_dataset("dense/dense/extra:0", (10,), "f4", maxshape=(None,), chunks=(2**29,), compression="gzip")
    _refused(h5, "claims far more")


def test_many_datasets_that_claim_a_little(h5):
    with h5py.File(h5, "a") as file:
        for index in range(100):
            file.create_dataset(f"dense/{index}", (2**20,), "f4", chunks=(1024,))
    _refused(h5, "claims far more")


def test_compressed_weights_are_read(tmp_path):
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file.create_dataset("a/kernel:0", data=np.zeros((1000, 1000), "f4"), compression="gzip")
    assert read_datasets(tmp_path / "w.h5")["a/kernel:0"].shape == (1000, 1000)


def test_links_and_datasets_in_other_files(h5, tmp_path):
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["secret"] = np.zeros(3, "f4")
    (tmp_path / "raw").write_bytes(bytes(12))
    layout = h5py.VirtualLayout((3,), "f4")
    layout[:] = h5py.VirtualSource(tmp_path / "other.h5", "secret", (3,))
    original = h5.read_bytes()

    def check(change, message: str) -> None:
        h5.write_bytes(original)
        with h5py.File(h5, "a") as file:
            change(file)
        _refused(h5, message)

    check(lambda file: file.__setitem__("dense/x", h5py.ExternalLink("other.h5", "/secret")), "link to another file")
    check(lambda file: file.__setitem__("model_weights", h5py.ExternalLink("other.h5", "/")), "link to another file")
    check(lambda file: file.create_virtual_dataset("dense/x", layout), "in other files")
    check(lambda file: file.create_dataset("dense/x", (3,), "f4", external=[(tmp_path / "raw", 0, 12)]),
          "in other files")


@pytest.mark.parametrize("value", ["text", np.array([b"ab"]), np.zeros(2, [("a", "f4")]), h5py.Empty("f4")],
                         ids=["text", "bytes", "records", "empty"])
def test_datasets_that_are_no_numbers(h5, value):
    with h5py.File(h5, "a") as file:
        del file["dense/dense/bias:0"]
        file["dense/dense/bias:0"] = value
    _refused(h5, "not numbers|no shape")


def test_groups_that_hold_themselves(h5):
    with h5py.File(h5, "a") as file:
        file["dense/dense/again"] = file["dense"]
    assert len(load_weights(_model(), h5).loaded) == 2


def test_cuts_and_flipped_bytes_change_nothing(h5):
    good = h5.read_bytes()
    for end in range(1, len(good), len(good) // 20):
        h5.write_bytes(good[:end])
        _refused(h5, "no readable HDF5")
    rng = np.random.default_rng(0)
    for _ in range(30):
        damaged = bytearray(good)
        for place in rng.integers(8, len(good), 20):
            damaged[place] = rng.integers(256)
        h5.write_bytes(damaged)
        try:
            arrays = read_datasets(h5)
        except BrokenWeightFileError as error:
            assert "weights.h5" in str(error)
        else:
            assert all(array.nbytes < 1000 for array in arrays.values())


def test_a_page_and_an_empty_file_as_h5(tmp_path):
    path = tmp_path / "weights.h5"
    for content in (b"", b"<html></html>", zipfile.ZipFile.__doc__.encode()):
        path.write_bytes(content)
        _refused(path, "no readable HDF5")
