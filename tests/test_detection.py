"""Detector: batches, streams and forms of masks, on a graph whose answers are known and on a small network."""

from __future__ import annotations

import threading

import keras
import numpy as np
import pytest
from keras import ops
from pycocotools import mask as rle_tools

from kmrcnn.config import Config
from kmrcnn.data.image import compose_image_meta
from kmrcnn.detection import Detector
from kmrcnn.engine.replicas import Replicas
from kmrcnn.model import MaskRCNN
from tests.tiny import TinyConfig

D = 4


class _Settings(Config):
    NAME = "fake"
    NUM_CLASSES = 3
    IMAGES_PER_GPU = 3
    IMAGE_MIN_DIM = 64
    IMAGE_MAX_DIM = 64
    IMAGE_RESIZE_MODE = "pad64"
    MEAN_PIXEL = np.zeros(3)


class Answers(keras.layers.Layer):
    """One detection an image: its whole window, class 2, the brightest pixel / 255 as score. None if it is black."""

    def call(self, image, meta):
        size = meta[:, 4:6] - 1.0
        size = ops.concatenate([size, size], axis=-1)
        window = (meta[:, 7:11] - ops.convert_to_tensor([0.0, 0.0, 1.0, 1.0])) / size
        score = ops.max(image, axis=(1, 2, 3))[:, None] / 255.0
        row = ops.concatenate([window, 2 * ops.ones_like(score), score], axis=-1)
        row = ops.where(score > 0, row, ops.zeros_like(row))
        detections = ops.pad(row[:, None], [[0, 0], [0, D - 1], [0, 0]])
        # Only the mask of class 2 is filled.
        ramp = ops.convert_to_tensor([0.0, 0.0, 1.0])
        return detections, ops.ones((1, D, 28, 28, 3)) * ramp + 0.0 * score[:, :, None, None, None]

    def compute_output_spec(self, image, meta):
        return keras.KerasTensor((None, D, 6)), keras.KerasTensor((None, D, 28, 28, 3))


class Counting(Answers):
    """Counts runs of a torch graph, or traces of a compiled one, and the batch sizes they saw."""

    def __init__(self, seen, **kwargs):
        super().__init__(**kwargs)
        self._note = seen.append  # Keras would copy a list

    def call(self, image, meta):
        self._note(tuple(image.shape))
        return super().call(image, meta)


def _detector(seen=None, with_masks=True, **settings) -> Detector:
    config = _Settings()
    config.update(settings)
    image, meta = keras.Input((None, None, 3), name="input_image"), keras.Input((15,), name="input_image_meta")
    detections, masks = Counting([] if seen is None else seen)(image, meta)
    outputs = {"mrcnn_detection": detections, **({"mrcnn_mask": masks} if with_masks else {})}
    return Detector(keras.Model({"input_image": image, "input_image_meta": meta}, outputs), config, Replicas())


def _images(sizes):
    """Images told apart by their brightness."""
    return [np.full((*size, 3), 10 * index + 10, np.uint8) for index, size in enumerate(sizes)]


SIZES = [(64, 64), (100, 64), (64, 64), (65, 130), (64, 64), (100, 100), (64, 64), (128, 64)]


def test_results_come_in_input_order_and_in_each_images_pixels():
    seen = []
    images = _images(SIZES)
    results = _detector(seen).detect(images)
    for index, (image, result) in enumerate(zip(images, results, strict=True)):
        assert result["scores"] == pytest.approx([(10 * index + 10) / 255], rel=1e-5)
        np.testing.assert_array_equal(result["rois"], [[0, 0, *image.shape[:2]]])
        assert result["class_ids"].tolist() == [2]
        assert result["masks"].shape == (*image.shape[:2], 1) and result["masks"].all()
    assert {shape[0] for shape in seen if shape[0] is not None} == {3}
    assert {shape[1:3] for shape in seen if shape[1] is not None} == {(64, 64), (128, 64), (128, 192), (128, 128)}


@pytest.mark.skipif(keras.backend.backend() == "torch", reason="torch runs eagerly, nothing is compiled")
def test_one_compilation_a_shape():
    seen = []
    detector = _detector(seen)
    for count in (1, 2, 3, 5):
        detector.detect(_images([(64, 64)] * count))
    assert len([shape for shape in seen if shape[1] == 64]) == 1


def test_empty_results_have_matterports_shapes_and_dtypes():
    result, other = _detector().detect([np.zeros((40, 50, 3), np.uint8)] * 2)
    for name, shape, dtype in (("rois", (0, 4), np.int32), ("class_ids", (0,), np.int32),
                               ("scores", (0,), np.float32), ("masks", (40, 50, 0), bool)):
        assert (result[name].shape, result[name].dtype) == (other[name].shape, other[name].dtype) == (shape, dtype)
    assert _detector().detect([]) == []


def test_config_changes_count():
    detector = _detector()
    detector._config.IMAGES_PER_GPU = 1
    assert len(detector.detect(_images(SIZES[:3]))) == 3


@pytest.mark.parametrize("shape", [(40, 50), (40, 50, 4), (0, 50, 3), (40, 50, 3, 1)])
def test_wrong_shape_names_the_image(shape):
    with pytest.raises(ValueError, match=r"images\[1\]: expected the shape \[height, width, 3\]"):
        _detector().detect([np.zeros((40, 50, 3), np.uint8), np.zeros(shape, np.uint8)])


def test_detect_molded_answers_in_molded_pixels():
    molded = np.full((4, 64, 128, 3), 51, np.float32)
    meta = compose_image_meta(0, (30, 100, 3), (64, 128, 3), (17, 14, 47, 114), 1.0, [0, 0, 0])
    results = _detector().detect_molded(molded, np.stack([meta] * 4))
    assert len(results) == 4
    np.testing.assert_array_equal(results[3]["rois"], [[17, 14, 47, 114]])
    assert results[3]["masks"].shape == (64, 128, 1)
    assert results[3]["masks"].sum() == 30 * 100
    rles = _detector().detect_molded(molded, np.stack([meta] * 4), "rle")
    assert rles[3]["masks"] == _encoded(results[3]["masks"])


def test_threads_get_their_own_results():
    detector, failures = _detector(), []

    def work(start):
        for repeat in range(5):
            sizes = SIZES[start:] + SIZES[:start]
            images = _images(sizes)
            for image, result in zip(images, detector.detect(images), strict=True):
                wanted = image[0, 0, 0] / 255
                if abs(result["scores"][0] - wanted) > 1e-5 or result["masks"].shape[:2] != image.shape[:2]:
                    failures.append((start, repeat))

    threads = [threading.Thread(target=work, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@pytest.mark.once
def test_memory_stays_flat():
    resource = pytest.importorskip("resource")
    detector, image = _detector(IMAGES_PER_GPU=1), np.full((60, 60, 3), 9, np.uint8)
    for _ in range(50):
        detector.detect([image])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(1000):
        detector.detect([image])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 8 * 1024  # kB


def test_the_config_chooses_the_way_back():
    image = np.full((50, 90, 3), 90, np.uint8)
    seen = {}
    for rule, inclusive in (("matterport", False), ("torchvision", True), ("detectron2", False)):
        settings = {"BOX_OFFSET": 0, "INCLUSIVE_BOXES": inclusive, "PASTE_RULE": rule, "IMAGE_MAX_DIM": 128,
                    "IMAGE_RESIZE_MODE": "shortest", "IMAGE_DIVISOR": 32}
        result = _detector(**settings).detect([image])[0]
        seen[rule] = result["masks"].sum()
        np.testing.assert_allclose(result["boxes"], [[0, 0, 50, 90]], atol=0.4)
        assert result["rois"].tolist() == [[0, 0, 50, 90]]
    # The fading of detectron2's rule begins half a cell inside the box, where a mask of ones stays above one half.
    assert seen["matterport"] == seen["detectron2"] == 4500
    assert 0.95 * 4500 < seen["torchvision"] <= 4500


def test_empty_results_have_boxes():
    result = _detector().detect([np.zeros((40, 50, 3), np.uint8)])[0]
    assert result["boxes"].shape == (0, 4) and result["boxes"].dtype == np.float32


def _encoded(masks: np.ndarray) -> list[dict]:
    return rle_tools.encode(np.asfortranarray(masks.view(np.uint8))) if masks.shape[2] else []


def _assert_same(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, list):
            assert found[name] == value
        else:
            np.testing.assert_array_equal(found[name], value)


@pytest.mark.parametrize("form", ["bool", "rle", "soft", "none"])
def test_a_stream_equals_detect(form):
    images = [*_images(SIZES), np.zeros((30, 40, 3), np.uint8), *_images(SIZES[3:])]
    detector = _detector()
    expected, found = detector.detect(images, form), list(detector.stream(iter(images), form))
    assert len(found) == len(expected) == 14
    for one, other in zip(found, expected, strict=True):
        _assert_same(one, other)


def test_forms_of_masks():
    image = _images([(50, 70)])[0]
    detector = _detector(IMAGES_PER_GPU=1)
    stack, rle, soft, none = (detector.detect([image], form)[0] for form in ("bool", "rle", "soft", None))
    assert rle["masks"] == _encoded(stack["masks"]) and rle_tools.area(rle["masks"][0]) == 50 * 70
    assert soft["masks"].dtype == np.float32
    np.testing.assert_array_equal(soft["masks"], np.ones((1, 28, 28), np.float32))
    assert "masks" not in none
    for result in (rle, soft, none):
        _assert_same({**result, "masks": 0}, {**stack, "masks": 0})


def test_a_network_without_masks():
    image, detector = _images([(50, 70)])[0], _detector(with_masks=False, IMAGES_PER_GPU=1)
    stack, rle, none = (detector.detect([image], form)[0] for form in ("bool", "rle", None))
    assert stack["masks"].shape == (50, 70, 1) and not stack["masks"].any()
    assert rle["masks"] == _encoded(np.array(stack["masks"])) and "masks" not in none
    np.testing.assert_array_equal(none["rois"], [[0, 0, 50, 70]])


def test_forms_of_empty_results():
    image, detector = np.zeros((40, 50, 3), np.uint8), _detector(IMAGES_PER_GPU=1)
    assert detector.detect([image], "rle")[0]["masks"] == []
    assert detector.detect([image], "soft")[0]["masks"].shape == (0, 28, 28)
    assert list(detector.stream([])) == []


@pytest.mark.parametrize("call", [lambda detector: detector.detect([], "RLE"),
                                  lambda detector: detector.stream([], "RLE"),
                                  lambda detector: detector.detect_molded(np.zeros((0, 64, 64, 3)), [], "RLE")])
def test_an_unknown_form_is_named(call):
    with pytest.raises(ValueError, match="masks: found 'RLE', expected one of .*'bool', 'rle'.* or None"):
        call(_detector())


def _threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("kmrcnn-detect")]


def test_a_stream_pulls_what_it_has_room_for_and_ends_its_threads():
    pulled = []
    source = (pulled.append(1) or image for _ in range(100) for image in _images([(64, 64)]))
    stream = _detector(IMAGES_PER_GPU=2).stream(source)
    assert not _threads() and not pulled
    for given in range(1, 6):
        next(stream)
        assert given <= len(pulled) <= given + 8
    assert _threads()
    stream.close()
    assert not _threads() and len(pulled) < 20


def test_errors_come_behind_the_results_before_them():
    images = _images(SIZES)

    def broken():
        yield from images[:5]
        raise OSError("the disk is gone")

    for source, error, count in ((broken(), OSError, 5), ([*images[:4], images[0][..., :2], images[0]], ValueError, 4)):
        found = []
        with pytest.raises(error, match="the disk is gone|images.4.: expected the shape"):
            for result in _detector().stream(source):
                found.append(result["scores"][0])
        assert found == pytest.approx([(10 * index + 10) / 255 for index in range(count)], rel=1e-5)
        assert not _threads()


def test_pixels_are_normalised_alike_on_the_device_and_before():
    settings = {"MEAN_PIXEL": np.array([5.0, 6.0, 7.5]), "STD_PIXEL": np.array([1.5, 2.0, 0.7])}
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    scores = [_detector(IMAGES_PER_GPU=1, **settings).detect([pixels], None)[0]["scores"]
              for pixels in (image, image.astype(np.float32))]
    np.testing.assert_allclose(*scores, rtol=1e-6)
    expected = ((image - settings["MEAN_PIXEL"]) / settings["STD_PIXEL"]).max() / 255
    np.testing.assert_allclose(scores[0], [expected], rtol=1e-5)


@pytest.fixture(scope="module")
def network(tmp_path_factory) -> MaskRCNN:
    config = TinyConfig()
    # One engine from the first batch on, so that equal means equal.
    config.ENGINE = "eager" if keras.backend.backend() == "torch" else "auto"
    return MaskRCNN("inference", config, tmp_path_factory.mktemp("logs"))


@pytest.fixture(scope="module")
def noise() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, 3), np.uint8) for size in ((64, 64), (40, 90), (100, 30), (64, 50), (70, 71))]


def test_run_lengths_of_a_network_are_its_masks(network, noise):
    stacks, rles = network.detect(noise), network.detect(noise, masks="rle")
    assert sum(len(stack["scores"]) for stack in stacks) > 10
    for image, stack, rle in zip(noise, stacks, rles, strict=True):
        assert rle["masks"] == _encoded(stack["masks"])
        np.testing.assert_array_equal(rle_tools.decode(rle["masks"]).astype(bool), stack["masks"])
        assert stack["masks"].shape[:2] == image.shape[:2]
        np.testing.assert_array_equal(rle["rois"], stack["rois"])


def test_a_stream_of_a_network_equals_detect(network, noise):
    for found, expected in zip(network.detect_stream(iter(noise), masks="rle"), network.detect(noise, masks="rle"),
                               strict=True):
        _assert_same(found, expected)


@pytest.mark.once  # one more graph to compile
def test_a_network_does_without_masks(network, noise):
    plain, full = network.detect(noise[:2], masks=None), network.detect(noise[:2])
    for found, expected in zip(plain, full, strict=True):
        assert "masks" not in found
        np.testing.assert_allclose(found["scores"], expected["scores"], rtol=1e-5)
        np.testing.assert_array_equal(found["class_ids"], expected["class_ids"])


def test_an_image_of_one_tile_is_detected_as_it_is(network, noise):
    found, expected = network.detect_tiled(noise[0]), network.detect(noise[:1], masks="rle")[0]
    order = np.argsort(-expected["scores"], kind="stable")
    for name in ("rois", "boxes", "class_ids", "scores"):
        np.testing.assert_allclose(found[name], expected[name][order], rtol=1e-5)
    assert found["masks"] == [expected["masks"][index] for index in order]


def test_a_large_image_in_every_form(network):
    image = np.random.default_rng(1).integers(0, 256, (100, 130, 3), np.uint8)
    stack, rle, none = (network.detect_tiled(image, masks=form) for form in ("bool", "rle", None))
    assert stack["masks"].shape == (100, 130, len(stack["scores"])) and len(stack["scores"]) > 8
    assert rle["masks"] == _encoded(stack["masks"]) and "masks" not in none
    assert (np.diff(stack["scores"]) <= 0).all()
    np.testing.assert_array_equal(stack["rois"], none["rois"])
    with pytest.raises(ValueError, match="masks: found 'soft', expected one of"):
        network.detect_tiled(image, masks="soft")


def test_another_mode_detects_nothing(tmp_path):
    model = object.__new__(MaskRCNN)
    model.mode = "training"
    for call in (model.detect_stream, model.detect_tiled):
        with pytest.raises(ValueError, match='"inference" mode'):
            call([])
