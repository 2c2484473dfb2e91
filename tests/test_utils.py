"""utils: numpy box arithmetic, Matterport's per-image metrics, and names of other modules."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from kmrcnn import utils

pytestmark = pytest.mark.once


def _boxes(count: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 40, (count, 2))
    return np.concatenate([corner, corner + rng.uniform(1, 30, (count, 2))], axis=1)


def _slow_iou(one, other) -> float:
    height = max(min(one[2], other[2]) - max(one[0], other[0]), 0)
    width = max(min(one[3], other[3]) - max(one[1], other[1]), 0)
    area = (one[2] - one[0]) * (one[3] - one[1]) + (other[2] - other[0]) * (other[3] - other[1])
    return height * width / (area - height * width)


def test_overlaps_equal_the_slow_loop():
    boxes1, boxes2 = _boxes(7, 0), _boxes(5, 1)
    expected = np.array([[_slow_iou(one, other) for other in boxes2] for one in boxes1])
    overlaps = utils.compute_overlaps(boxes1, boxes2)
    assert overlaps.dtype == np.float64
    np.testing.assert_allclose(overlaps, expected, rtol=1e-12)
    areas = (boxes2[:, 2] - boxes2[:, 0]) * (boxes2[:, 3] - boxes2[:, 1])
    area = (boxes1[0, 2] - boxes1[0, 0]) * (boxes1[0, 3] - boxes1[0, 1])
    np.testing.assert_allclose(utils.compute_iou(boxes1[0], boxes2, area, areas), expected[0], rtol=1e-12)


def test_overlaps_of_nothing_and_of_empty_boxes():
    assert utils.compute_overlaps(np.zeros((0, 4)), _boxes(3, 0)).shape == (0, 3)
    np.testing.assert_array_equal(utils.compute_overlaps(np.zeros((2, 4)), np.zeros((1, 4))), [[0], [0]])


def test_mask_overlaps():
    masks = np.zeros((4, 4, 3), np.float32)
    masks[:2, :, 0] = 1
    masks[1:3, :, 1] = 0.6
    np.testing.assert_allclose(utils.compute_overlaps_masks(masks, masks[..., :2].astype(bool)),
                               [[1, 1 / 3], [1 / 3, 1], [0, 0]], rtol=1e-6)
    assert utils.compute_overlaps_masks(masks, np.zeros((4, 4, 0))).shape == (3, 0)


def test_non_max_suppression():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30], [0, 0, 10, 5]])
    kept = utils.non_max_suppression(boxes, np.array([0.5, 0.9, 0.7, 0.1]), 0.6)
    assert kept.dtype == np.int32
    assert kept.tolist() == [1, 2, 3]
    # IoU of exactly the threshold is kept, ties keep the input order, NaN is dropped.
    assert utils.non_max_suppression(boxes[[0, 3]], np.array([0.5, 0.5]), 0.5).tolist() == [0, 1]
    assert utils.non_max_suppression(boxes[:2], np.array([np.nan, 0.1]), 0.5).tolist() == [1]
    assert utils.non_max_suppression(np.zeros((0, 4)), np.zeros(0), 0.5).shape == (0,)


def test_refinement_and_deltas_are_inverse():
    boxes, targets = _boxes(6, 2), _boxes(6, 3)
    deltas = utils.box_refinement(boxes, targets)
    assert deltas.dtype == np.float32
    np.testing.assert_allclose(utils.apply_box_deltas(boxes, deltas), targets, atol=1e-4)
    np.testing.assert_allclose(
        utils.box_refinement(np.array([[0, 0, 10, 20]]), np.array([[5, 0, 15, 40]])), [[0.5, 0.5, 0, np.log(2)]],
        atol=1e-6)
    assert np.isfinite(utils.box_refinement(np.zeros((1, 4)), np.zeros((1, 4)))).all()


def test_norm_boxes():
    boxes = np.array([[0, 0, 100, 50], [10, 20, 30, 40]], np.uint8)
    normalised = utils.norm_boxes(boxes, (100, 50))
    assert normalised.dtype == np.float32
    np.testing.assert_allclose(normalised[0], [0, 0, 1, 1])
    pixels = utils.denorm_boxes(normalised, (100, 50))
    assert pixels.dtype == np.int32
    np.testing.assert_array_equal(pixels, boxes)


def test_normalised_anchors_of_the_reference():
    """First and last anchor of a 1024 image, in pixels and normalised (golden values of the Matterport rules)."""
    pixels = np.array([[-22.6274, -11.3137, 22.6274, 11.3137], [778.9807, 597.9613, 1141.0193, 1322.0387]])
    np.testing.assert_allclose(
        utils.norm_boxes(pixels, (1024, 1024)),
        [[-0.022119, -0.011059, 0.021141, 0.010082], [0.761467, 0.584517, 1.114388, 1.291338]], atol=1e-6)


def test_trim_zeros():
    assert utils.trim_zeros(np.array([[1, 0], [0, 0], [0, 2]])).tolist() == [[1, 0], [0, 2]]


def _scene():
    """Three objects in a row; predictions: a good one, one of a wrong class, one shifted, one on nothing."""
    gt_masks = np.zeros((10, 40, 4), bool)
    for index in range(3):
        gt_masks[2:8, 10 * index : 10 * index + 8, index] = True
    pred_masks = np.zeros((10, 40, 4), bool)
    pred_masks[..., 0] = gt_masks[..., 0]
    pred_masks[..., 1] = gt_masks[..., 1]
    pred_masks[2:8, 22:30, 2] = True
    pred_masks[0:4, 32:40, 3] = True
    boxes = np.array([[2, 0, 8, 8], [2, 10, 8, 18], [2, 20, 8, 28], [0, 0, 0, 0]])
    pred_boxes = np.array([[2, 0, 8, 8], [2, 10, 8, 18], [2, 22, 8, 30], [0, 32, 4, 40]])
    truth = boxes, np.array([1, 1, 2, 0]), gt_masks
    return *truth, pred_boxes, np.array([1, 2, 2, 1]), np.array([0.6, 0.7, 0.8, 0.9]), pred_masks


def test_compute_matches_is_in_score_order():
    gt_match, pred_match, overlaps = utils.compute_matches(*_scene())
    assert overlaps.shape == (4, 3)
    assert pred_match.tolist() == [-1, 2, -1, 0]
    assert gt_match.tolist() == [3, -1, 1]
    gt_match, _, _ = utils.compute_matches(*_scene(), iou_threshold=0.7)
    assert gt_match.tolist() == [3, -1, -1]


def test_compute_ap():
    ap, precisions, recalls, _ = utils.compute_ap(*_scene())
    # Hits at ranks 2 and 4 of 3 objects: the envelope is 1/2 over the recall up to 2/3.
    np.testing.assert_allclose(ap, 1 / 3)
    np.testing.assert_allclose(recalls, [0, 0, 1 / 3, 1 / 3, 2 / 3, 1])
    np.testing.assert_allclose(precisions, [0.5, 0.5, 0.5, 0.5, 0.5, 0])


def test_compute_ap_range(capsys):
    scene = _scene()
    expected = np.mean([utils.compute_ap(*scene, iou_threshold=value)[0] for value in np.arange(0.5, 1, 0.05)])
    np.testing.assert_allclose(utils.compute_ap_range(*scene), expected)
    assert "AP @0.50:\t 0.333" in capsys.readouterr().out
    np.testing.assert_allclose(utils.compute_ap_range(*scene, iou_thresholds=np.array([0.5]), verbose=0), 1 / 3)


def test_ap_without_predictions_or_ground_truth():
    boxes, classes, masks, *predicted = _scene()
    nothing = np.zeros((0, 4)), np.zeros(0, int)
    no_masks = np.zeros((10, 40, 0), bool)
    assert utils.compute_ap(boxes, classes, masks, *nothing, np.zeros(0), no_masks)[0] == 0
    assert np.isnan(utils.compute_ap(*nothing, no_masks, *predicted)[0])


def test_compute_recall():
    truth = np.array([[0, 0, 10, 10], [20, 20, 30, 30]])
    recall, positive = utils.compute_recall(np.array([[0, 0, 10, 9], [0, 0, 10, 10], [50, 50, 60, 60]]), truth, 0.7)
    assert recall == 0.5
    assert positive.tolist() == [0, 1]
    assert utils.compute_recall(np.zeros((0, 4)), truth, 0.5)[0] == 0
    assert np.isnan(utils.compute_recall(truth, np.zeros((0, 4)), 0.5)[0])


def test_names_of_other_modules():
    from kmrcnn.data.dataset import Dataset

    assert utils.Dataset is Dataset
    for name in ("extract_bboxes", "resize_image", "resize_mask", "resize", "minimize_mask", "expand_mask",
                 "unmold_mask", "generate_anchors", "generate_pyramid_anchors"):
        assert callable(getattr(utils, name)), name
        assert name in dir(utils)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = utils.nothing


def test_import_loads_no_backend():
    code = ("import sys, kmrcnn.utils as u, kmrcnn.evaluation.coco, kmrcnn.visualize; u.generate_anchors; u.Dataset;"
            "sys.exit(bool({'keras', 'torch', 'tensorflow', 'jax'} & set(sys.modules)))")
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_download_trained_weights(monkeypatch, tmp_path, capsys):
    import kmrcnn.data.download as download

    calls = []
    monkeypatch.setattr(download, "download", lambda url, path, **options: calls.append((url, path)))
    utils.download_trained_weights(tmp_path / "weights.h5")
    assert calls == [(utils.COCO_MODEL_URL, tmp_path / "weights.h5")]
    assert "Downloading" in capsys.readouterr().out
