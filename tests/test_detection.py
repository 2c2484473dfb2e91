"""Grouping, order and unmolding of detections, on a graph whose answers are known."""

from __future__ import annotations

import threading

import keras
import numpy as np
import pytest
from keras import ops

from kmrcnn.config import Config
from kmrcnn.data.image import compose_image_meta, unmold_mask
from kmrcnn.data.paste import paste_masks
from kmrcnn.detection import Detector, unmold
from kmrcnn.utils import norm_boxes

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


def _detector(seen=None, **settings) -> Detector:
    config = _Settings()
    config.update(settings)
    image, meta = keras.Input((None, None, 3), name="input_image"), keras.Input((15,), name="input_image_meta")
    detections, masks = Counting([] if seen is None else seen)(image, meta)
    model = keras.Model({"input_image": image, "input_image_meta": meta},
                        {"mrcnn_detection": detections, "mrcnn_mask": masks})
    return Detector(model, config)


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


@pytest.mark.once
def test_unmold_moves_boxes_through_the_window():
    # A 200 x 400 image shown at half size in the middle of a 256 x 256 frame.
    window, original, frame = (78, 28, 178, 228), (200, 400, 3), (256, 256, 3)
    pixels = np.array([[78, 28, 178, 228], [88, 48, 98, 68], [100, 100, 100, 120], [80, 30, 90, 40]])
    rows = np.concatenate([norm_boxes(pixels, frame[:2]), [[1, .9], [2, .8], [1, .7], [0, 0]]], axis=1)
    result = unmold(rows.astype(np.float32), np.ones((4, 28, 28), np.float32), original, frame, window)
    assert result["rois"].dtype == np.int32
    np.testing.assert_allclose(result["rois"], [[0, 0, 200, 400], [20, 40, 40, 80]], atol=1)
    assert result["class_ids"].tolist() == [1, 2]
    assert result["scores"] == pytest.approx([.9, .8])
    assert result["masks"].shape == (200, 400, 2)


@pytest.mark.once
def test_one_pixel_high_image():
    frame, window = (64, 64, 3), (31, 0, 32, 64)
    row = np.concatenate([norm_boxes(np.array([window]), frame[:2])[0], [1, .9]])[None].astype(np.float32)
    result = unmold(row, np.ones((1, 28, 28), np.float32), (1, 64, 3), frame, window)
    np.testing.assert_array_equal(result["rois"], [[0, 0, 1, 64]])


@pytest.mark.once
def test_paste_is_unmold_mask_for_every_instance():
    rng = np.random.default_rng(0)
    corners = np.sort(rng.integers(0, [90, 120], (20, 2, 2)), axis=1)
    boxes = np.concatenate([corners[:, 0], corners[:, 1] + 1], axis=1)
    masks = rng.random((20, 28, 28)).astype(np.float32)
    pasted = paste_masks(masks, boxes, (90, 120, 3))
    assert pasted.shape == (90, 120, 20) and pasted.dtype == bool
    for index in range(20):
        np.testing.assert_array_equal(pasted[:, :, index], unmold_mask(masks[index], boxes[index], (90, 120)))
    assert paste_masks(masks[:0], boxes[:0], (90, 120, 3)).shape == (90, 120, 0)


@pytest.mark.once
def test_boxes_are_the_rois_before_rounding():
    window, original, frame = (78, 28, 178, 228), (200, 400, 3), (256, 256, 3)
    row = np.array([[(83.3 - 0) / 255, 40.7 / 255, (99.9 - 1) / 255, (61.2 - 1) / 255, 1, .9]], np.float32)
    result = unmold(row, np.ones((1, 28, 28), np.float32), original, frame, window)
    # Matterport: both frames are counted from the first to the last pixel.
    expected = [(83.3 - 78) * 199 / 99, (40.7 - 28) * 399 / 199,
                (98.9 - 78) * 199 / 99 + 1, (60.2 - 28) * 399 / 199 + 1]
    np.testing.assert_allclose(result["boxes"], [expected], rtol=1e-4)
    assert result["boxes"].dtype == np.float32
    np.testing.assert_array_equal(result["rois"], np.around([expected]))


def _half_open(pixels, frame):
    """Rows of detections of class 1 from half-open pixel boxes in a molded image."""
    boxes = norm_boxes(np.asarray(pixels, float), frame[:2])
    return np.concatenate([boxes, np.ones_like(boxes[:, :2])], axis=1).astype(np.float32)


@pytest.mark.once
def test_pixel_frames_go_back_by_the_ratio_of_the_sizes():
    """A 100 x 180 image shown as 160 x 300 at the top left of 160 x 320: ratios of 100 / 160 and 180 / 300."""
    frame, window, original = (160, 320, 3), (0, 0, 160, 300), (100, 180, 3)
    rows = _half_open([[0, 0, 160, 300], [16.4, 30.5, 80, 90.25], [40, 60, 40.2, 60.3]], frame)
    masks = np.ones((3, 28, 28), np.float32)
    ratio = np.array([100 / 160, 180 / 300] * 2)
    expected = np.array([[0, 0, 160, 300], [16.4, 30.5, 80, 90.25], [40, 60, 40.2, 60.3]]) * ratio
    for rule in ("torchvision", "detectron2"):
        result = unmold(rows, masks, original, frame, window, box_offset=0, paste_rule=rule)
        np.testing.assert_allclose(result["boxes"], expected, atol=1e-3)
        assert result["rois"].tolist() == [[0, 0, 100, 180], [10, 18, 50, 54], [25, 36, 26, 37]]
        np.testing.assert_array_equal(result["masks"], paste_masks(masks, result["boxes"], original, rule))
    rounded = unmold(rows, masks, original, frame, window, box_offset=0)
    assert rounded["rois"].tolist() == [[0, 0, 100, 180], [10, 18, 50, 54]], "nothing is left of the last one"
    assert rounded["masks"].all(axis=(0, 1)).tolist() == [True, False]


@pytest.mark.once
def test_inclusive_boxes_scale_the_coordinate_of_their_last_pixel():
    frame, window, original = (160, 320, 3), (0, 0, 160, 300), (100, 180, 3)
    rows, masks = _half_open([[16, 30, 80, 90]], frame), np.ones((1, 28, 28), np.float32)
    result = unmold(rows, masks, original, frame, window, box_offset=0, inclusive=True, paste_rule="torchvision")
    expected = [[16 * 100 / 160, 30 * 180 / 300, 79 * 100 / 160 + 1, 89 * 180 / 300 + 1]]
    np.testing.assert_allclose(result["boxes"], expected, atol=1e-4)
    np.testing.assert_array_equal(result["masks"], paste_masks(masks, expected, original, "torchvision", True))


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
