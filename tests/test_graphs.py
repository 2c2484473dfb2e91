"""Matterport's free graph functions and the tensors its notebooks ask for, against slow numpy versions."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import ops

import kmrcnn.model as modellib
from kmrcnn.config import Config
from tests.reference import detector as reference

STD = np.array([0.1, 0.1, 0.2, 0.2])
LEVELS = ("fpn_p2", "fpn_p3", "fpn_p4", "fpn_p5")
WHOLE = np.array([0.0, 0.0, 1.0, 1.0], "float32")


class Tiny(Config):
    NAME = "tiny"
    NUM_CLASSES = 3
    BACKBONE = "resnet18"
    IMAGE_MIN_DIM = IMAGE_MAX_DIM = 64
    RPN_ANCHOR_SCALES = (8, 16, 32, 64, 128)
    TOP_DOWN_PYRAMID_SIZE = 16
    FPN_CLASSIF_FC_LAYERS_SIZE = 32
    PRE_NMS_LIMIT = 200
    POST_NMS_ROIS_INFERENCE = 30
    DETECTION_MAX_INSTANCES = 8
    DETECTION_MIN_CONFIDENCE = 0
    TRAIN_ROIS_PER_IMAGE = 60
    MASK_POOL_SIZE = 7
    MASK_SHAPE = (14, 14)


def _np(values):
    return [ops.convert_to_numpy(value) for value in values]


def _boxes(rng, count: int) -> np.ndarray:
    """Normalised boxes, some of which overlap."""
    corner = rng.uniform(0, 0.6, (count, 2))
    return np.concatenate([corner, corner + rng.uniform(0.05, 0.4, (count, 2))], axis=1).astype("float32")


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="module")
def detector():
    return modellib.MaskRCNN("inference", Tiny(), "unused")


@pytest.fixture(scope="module")
def parts(detector):
    """Arrays of the inference graph, asked for as the notebook that inspects a model does."""
    image = np.random.default_rng(1).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    layers = [(name, detector.keras_model.get_layer(name).output) for name in ("input_image", "mrcnn_mask", "ROI")]
    steps = {"pre_nms_anchors": "ROI/pre_nms_anchors:0", "refined_anchors": "ROI/refined_anchors:0",
             "refined_anchors_clipped": "ROI/refined_anchors_clipped:0",
             "post_nms_anchor_ix": "ROI/rpn_non_max_suppression/NonMaxSuppressionV3:0"}
    steps = [(key, detector.ancestor(layers[-1][1], name)) for key, name in steps.items()]
    return detector.run_graph([image], ["rpn_class", "rpn_bbox", "mrcnn_class", "mrcnn_bbox", "mrcnn_detection",
                                        *LEVELS, *layers, *steps, "proposals"])


def test_every_name_can_be_imported():
    assert all(callable(getattr(modellib, name)) for name in modellib.__all__)


def test_boxes_equal_the_reference(rng):
    boxes, others, deltas = _boxes(rng, 6), _boxes(rng, 4), rng.normal(0, 0.5, (6, 4)).astype("float32")
    window = np.array([0.2, 0.1, 0.7, 0.8], "float32")
    moved, clipped, overlaps = _np([modellib.apply_box_deltas_graph(boxes, deltas),
                                    modellib.clip_boxes_graph(boxes, window), modellib.overlaps_graph(boxes, others)])
    for row, box in enumerate(boxes):
        np.testing.assert_allclose(moved[row], reference.decode(box, deltas[row], 1.0), atol=1e-5)
        np.testing.assert_allclose(clipped[row], reference.clip(box, window), atol=1e-6)
        np.testing.assert_allclose(overlaps[row], [reference.iou(box, other) for other in others], atol=1e-5)


def test_normalised_boxes_are_matterports():
    pixels = np.array([[0, 0, 40, 60], [3, 5, 11, 30]], "float32")
    norm, = _np([modellib.norm_boxes_graph(pixels, (40, 60))])
    np.testing.assert_allclose(norm[0], WHOLE, atol=1e-6)
    np.testing.assert_allclose(norm[1], [3 / 39, 5 / 59, 10 / 39, 29 / 59], atol=1e-6)
    back, half = _np([modellib.denorm_boxes_graph(norm, (40, 60)),
                      modellib.denorm_boxes_graph(np.array([[0.5, 1.5, -0.5, 1.5]], "float32"), (2, 2))])
    np.testing.assert_array_equal(back, pixels)
    assert back.dtype == np.int32 and half.tolist() == [[0, 2, 0, 2]]


def test_rows_and_metas():
    boxes = np.array([[1, 2, 3, 4], [0, 0, 0, 0], [0, 0, 5, 6]], "float32")
    trimmed, used = _np(modellib.trim_zeros_graph(boxes))
    np.testing.assert_array_equal(trimmed, boxes[[0, 2]])
    assert used.tolist() == [True, False, True]
    packed, = _np([modellib.batch_pack_graph(ops.convert_to_tensor(np.stack([boxes, boxes + 1])), [1, 2], 2)])
    np.testing.assert_array_equal(packed, np.concatenate([boxes[:1], boxes[:2] + 1]))
    meta = modellib.compose_image_meta(7, (10, 20, 3), (64, 64, 3), (1, 2, 60, 50), 2.5, [1, 0, 1])[None]
    wanted = modellib.parse_image_meta(meta)
    parts = modellib.parse_image_meta_graph(ops.convert_to_tensor(meta.astype("float32")))
    assert set(parts) == set(wanted)
    for name, part in parts.items():
        np.testing.assert_array_equal(ops.convert_to_numpy(part), wanted[name])


def test_rpn_losses_equal_the_reference(rng):
    match = rng.permutation(np.repeat([1, -1, 0], [5, 12, 13])).reshape(2, 15, 1)
    logits, deltas = rng.normal(0, 2, (2, 15, 2)).astype("float32"), rng.normal(0, 2, (2, 15, 4)).astype("float32")
    target = rng.normal(0, 1, (2, 8, 4)).astype("float32")
    classes, boxes = _np([modellib.rpn_class_loss_graph(match, logits),
                          modellib.rpn_bbox_loss_graph(Tiny(), target, match, deltas)])
    used = [(b, a) for b in range(2) for a in range(15) if match[b, a, 0] != 0]
    expected = [reference.cross_entropy(logits[b, a], int(match[b, a, 0] == 1)) for b, a in used]
    np.testing.assert_allclose(classes, np.mean(expected), rtol=1e-5)
    expected = [reference.smooth_l1(deltas[b, a] - target[b, row]) / 4
                for b in range(2) for row, a in enumerate(np.flatnonzero(match[b, :, 0] == 1))]
    np.testing.assert_allclose(boxes, np.mean(expected), rtol=1e-5)


def test_head_losses_equal_the_reference(rng):
    ids = np.array([[1, 2, 0, 0], [2, 0, 0, 0]], "int32")
    active = np.array([[1, 1, 0], [1, 1, 1]], "int32")
    logits, deltas = rng.normal(0, 2, (2, 4, 3)).astype("float32"), rng.normal(0, 2, (2, 4, 3, 4)).astype("float32")
    boxes = rng.normal(0, 1, (2, 4, 4)).astype("float32")
    masks = rng.integers(0, 2, (2, 4, 5, 5)).astype("float32")
    probs = rng.uniform(0.01, 0.99, (2, 4, 5, 5, 3)).astype("float32")
    found = _np([modellib.mrcnn_class_loss_graph(ids, logits, active),
                 modellib.mrcnn_bbox_loss_graph(boxes, ids, deltas), modellib.mrcnn_mask_loss_graph(masks, ids, probs)])
    rows = [(b, n) for b in range(2) for n in range(4)]
    classes = [reference.cross_entropy(logits[row], ids[row]) for row in rows if active[row[0], logits[row].argmax()]]
    positive = [row for row in rows if ids[row] > 0]
    coords = [reference.smooth_l1(deltas[row][ids[row]] - boxes[row]) / 4 for row in positive]
    pixels = [reference.binary_cross_entropy(np.log(p / (1 - p)), t) for row in positive
              for p, t in zip(probs[row][..., ids[row]].ravel().astype(float), masks[row].ravel(), strict=True)]
    np.testing.assert_allclose(found, [np.mean(classes), np.mean(coords), np.mean(pixels)], rtol=1e-4)
    error, = _np([modellib.smooth_l1_loss(np.array([0.0, 1.0], "float32"), np.array([0.5, -2.0], "float32"))])
    np.testing.assert_allclose(error, [0.125, 2.5])


def test_losses_without_anything_to_learn_are_zero():
    zeros = np.zeros((1, 4), "int32")
    found = _np([modellib.rpn_class_loss_graph(zeros[..., None], np.zeros((1, 4, 2), "float32")),
                 modellib.mrcnn_bbox_loss_graph(np.zeros((1, 4, 4), "float32"), zeros,
                                                np.ones((1, 4, 3, 4), "float32")),
                 modellib.mrcnn_mask_loss_graph(np.zeros((1, 4, 2, 2)), zeros, np.ones((1, 4, 2, 2, 3)))])
    assert found == [0, 0, 0]


def test_detection_targets_equal_the_reference(rng):
    gt = np.array([[0.1, 0.1, 0.5, 0.4], [0.5, 0.5, 0.9, 0.95], [0, 0.6, 0.3, 0.9], [0, 0, -0.01, -0.01]], "float32")
    ids, masks = np.array([1, 2, -1, 0], "int32"), rng.integers(0, 2, (14, 14, 4)).astype(bool)
    near = gt[rng.integers(0, 2, 20)] + rng.uniform(-0.03, 0.03, (20, 4))
    proposals = np.concatenate([near, _boxes(rng, 30), np.zeros((4, 4))]).astype("float32")
    rois, class_ids, deltas, targets = _np(modellib.detection_targets_graph(proposals, ids, gt, masks, Tiny()))
    assert rois.shape == (60, 4) and targets.shape == (60, 14, 14)
    row_of = {tuple(roi): i for i, roi in enumerate(proposals)}
    drawn = [row_of[tuple(roi)] for roi in rois if roi.any()]
    positives, negatives, matched = reference.roi_candidates(proposals, ids, gt, 0.5)
    count = min(len(positives), int(60 * 0.33))
    assert len(set(drawn)) == len(drawn) == count + len(negatives)
    assert set(drawn[:count]) <= positives and set(drawn[count:]) == negatives
    for row, index in enumerate(drawn[:count]):
        box = gt[matched[index]]
        assert class_ids[row] == ids[matched[index]]
        np.testing.assert_allclose(deltas[row], reference.encode(rois[row], box, STD), atol=1e-3)
        wanted = reference.mask_target(masks[..., matched[index]].astype(float), rois[row], box, (14, 14))
        assert np.mean(targets[row] != wanted) < 0.03
    assert not class_ids[count:].any() and not deltas[count:].any() and not targets[count:].any()


def test_detections_equal_the_reference(rng):
    rois, deltas = _boxes(rng, 40), rng.normal(0, 0.5, (40, 3, 4)).astype("float32")
    rois[-2:] = 0
    probs = rng.dirichlet(np.ones(3), 40).astype("float32")
    window = np.array([0.1, 0.0, 0.8, 1.0], "float32")
    found, = _np([modellib.refine_detections_graph(rois, probs, deltas, window, Tiny())])
    np.testing.assert_allclose(found, reference.detections(rois, probs, deltas, window, 8, 0, 0.3, STD), atol=1e-4)


@pytest.mark.once
def test_resnet_has_matterports_layers():
    image = keras.Input((64, 64, 3))
    c1, *_, c4, c5 = modellib.resnet_graph(image, "resnet50", train_bn=False)
    assert c5 is None and c1.shape[1:] == (16, 16, 64) and c4.shape[1:] == (4, 4, 1024)
    assert "res5a_out" not in {layer.name for layer in keras.Model(image, c4).layers}
    assert modellib.resnet_graph(image, "resnet18", stage5=True)[-1].shape[1:] == (2, 2, 512)


@pytest.mark.once
def test_blocks_have_matterports_weights():
    x = keras.Input((8, 8, 16))
    y = modellib.conv_block(x, 3, [4, 4, 16], 2, "a", strides=(1, 1), use_bias=False, train_bn=False)
    y = modellib.identity_block(y, 5, [4, 4, 16], 2, "b", train_bn=False)
    y = modellib.conv_block(y, 3, [8, 8, 32], 3, "a", train_bn=False)
    weights = {layer.name: [w.shape for w in layer.weights] for layer in keras.Model(x, y).layers if layer.weights}
    assert y.shape[1:] == (4, 4, 32) and len(weights) == 2 * (4 + 3 + 4)
    assert weights["res2a_branch1"] == [(1, 1, 16, 16)]
    assert weights["res2b_branch2b"] == [(5, 5, 4, 4), (4,)]
    assert weights["res3a_branch2a"] == [(1, 1, 16, 8), (8,)] and len(weights["bn3a_branch1"]) == 4


def test_heads_equal_the_models(detector, parts):
    """The head functions, with a model's weights and its own normalised boxes, give its answers."""
    maps = [keras.Input((None, None, 16)) for _ in LEVELS]
    rois, boxes = keras.Input((30, 4)), keras.Input((8, 4))
    _, probs, deltas = modellib.fpn_classifier_graph(rois, maps, None, 7, 3, train_bn=False, fc_layers_size=32)
    masks = modellib.build_fpn_mask_graph(boxes, maps, None, 7, 3, train_bn=False)
    heads = keras.Model([rois, boxes, *maps], [probs, deltas, masks])
    for layer in filter(lambda layer: layer.weights, heads.layers):
        layer.set_weights(detector.keras_model.get_layer(layer.name).get_weights())
    inputs = [parts["ROI"], parts["mrcnn_detection"][..., :4], *(parts[level] for level in LEVELS)]
    found = heads.predict_on_batch(inputs)
    for value, name in zip(found, ("mrcnn_class", "mrcnn_bbox", "mrcnn_mask"), strict=True):
        np.testing.assert_allclose(value, parts[name], rtol=1e-3, atol=1e-4)


def test_rpn_graph_is_the_rpn_model():
    features = keras.Input((8, 8, 16))
    graph = keras.Model(features, modellib.rpn_graph(features, 3, 1))
    model = modellib.build_rpn_model(1, 3, 16)
    model.set_weights(graph.get_weights())
    x = np.random.default_rng(0).normal(size=(1, 8, 8, 16)).astype("float32")
    for found, wanted, width in zip(_np(model(x)), _np(graph(x)), (2, 2, 4), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-5)
        assert found.shape == (1, 192, width)


def test_steps_of_the_proposals_equal_the_reference(detector, parts):
    anchors = detector.get_anchors((64, 64, 3))
    scores, deltas = parts["rpn_class"][0, :, 1], parts["rpn_bbox"][0]
    order = sorted(range(len(anchors)), key=lambda i: (-scores[i], i))[:200]
    refined = np.array([reference.decode(anchors[i], deltas[i], STD) for i in order])
    clipped = np.array([reference.clip(box, WHOLE) for box in refined])
    np.testing.assert_allclose(parts["pre_nms_anchors"][0], anchors[order], atol=1e-5)
    np.testing.assert_allclose(parts["refined_anchors"][0], refined, rtol=1e-6, atol=1e-4)
    np.testing.assert_allclose(parts["refined_anchors_clipped"][0], clipped, rtol=1e-6, atol=1e-4)
    kept = reference.greedy_nms(clipped, scores[order], 0.7, 30)
    np.testing.assert_array_equal(parts["post_nms_anchor_ix"], kept)
    np.testing.assert_allclose(parts["proposals"][0, : len(kept)], clipped[kept], atol=1e-4)


def test_names_of_tensors(detector):
    find = detector.ancestor
    assert find(None, "ROI/rpn_non_max_suppression:0") is find(None, "post_nms_anchor_ix")
    assert find(None, "res2a_out/Relu:0") is detector.keras_model.get_layer("res2a_out").output
    assert find(None, "ROI/nothing:0") is None and find(None, "nothing") is None
    with pytest.raises(ValueError, match="'nothing'"):
        detector.run_graph([np.zeros((64, 64, 3), np.uint8)], ["nothing"])


def test_layers_with_the_name_of_an_output_give_the_output(parts):
    assert parts["input_image"].shape == (1, 64, 64, 3) and parts["mrcnn_mask"].shape == (1, 8, 14, 14, 3)
    assert 0 <= parts["mrcnn_mask"].min() and parts["mrcnn_mask"].max() <= 1 and parts["ROI"].max() <= 1
    np.testing.assert_array_equal(parts["ROI"], parts["proposals"])


def test_inspected_model_can_be_saved(detector, tmp_path):
    detector.ancestor(None, "ROI/refined_anchors:0")
    detector.keras_model.save(tmp_path / "model.keras")
    assert len(keras.saving.load_model(tmp_path / "model.keras").layers) == len(detector.keras_model.layers)
