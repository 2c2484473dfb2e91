"""The heads' targets by kernels, against a slow reference and, number for number, against the array operations."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kmrcnn.layers import DetectionTargetLayer
from kmrcnn.ops.roi_targets import roi_targets
from tests.kernels.emulation import ORDERS, emulation, run_sanitized, survivors
from tests.kernels.target_problems import (
    SEEDS,
    STD,
    assert_same,
    ground_truth,
    launch_everything,
    proposals_near,
    tensors,
)
from tests.reference import detector, pooling, sampling

pytestmark = pytest.mark.once

MATCHING = {"label_boxes", "draw_rows", "drawn_targets"}
SIDES = (200, 210)


def problem(count: int = 120, objects: int = 8, rows: int = 11, batch: int = 3, mask: tuple[int, int] = (28, 28),
            seed: int = 0, crowds: int = 1) -> list[torch.Tensor]:
    """Proposals, ground truth, masks made of two discs each, frames and seeds."""
    rng = np.random.default_rng(seed)
    ids, boxes = ground_truth(rng, batch, objects, rows, crowds=crowds)
    proposals = proposals_near(rng, boxes, count) if rows else np.ones((batch, count, 4), "float32")
    y, x = (np.arange(side)[:, None] / side for side in mask)
    centre = rng.uniform(0.1, 0.9, (4, batch, 1, 1, rows))
    discs = [np.hypot(y[:, :, None] - centre[i], (x.T)[:, :, None] - centre[i + 1]) < 0.3 for i in (0, 2)]
    frame = np.array([[0, 0, *SIDES]] * batch, "float32")
    return tensors(proposals, ids, boxes, discs[0] | discs[1], frame, SEEDS[:batch])


def both(arguments, order: int = 0, **settings):
    """Results of the kernels and of the array operations."""
    settings = {"size": 60, "max_positives": 20, "mask_shape": (14, 14), **settings}
    with emulation(order=order) as emulator:
        found = roi_targets(*arguments, **settings)
    assert dict(emulator.launches) == dict.fromkeys(
        MATCHING | {"align_targets" if settings.get("mask_targets") == "roi_align" else "crop_targets"}, 1)
    return found, roi_targets(*arguments, **settings)


def assert_close(found, expected) -> None:
    """As `assert_same`; of rounded masks one cell in a thousand may differ, where the value is one half."""
    assert_same((*found[:3], found[4]), (*expected[:3], expected[4]))
    assert ((found[3] - expected[3]).abs() > 2e-5).float().mean() <= 1e-3


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("use_mini_mask", [True, False])
def test_equal_the_reference(order, use_mini_mask):
    arguments = problem(mask=(28, 28) if use_mini_mask else SIDES)
    size, most, shape = 50, 12, (6, 5)
    with emulation(order=order):
        results = roi_targets(*arguments, size=size, max_positives=most, mask_shape=shape, append_gt=True,
                              use_mini_mask=use_mini_mask)
    proposals, ids, boxes, masks, frame, seeds = (tensor.numpy() for tensor in arguments)
    for image, (rois, class_ids, deltas, targets, weights) in enumerate(zip(*results, strict=True)):
        real = np.where(ids[image, :, None] > 0, boxes[image], 0)
        everything = np.concatenate([proposals[image], real])
        positives, negatives, owner = detector.roi_candidates(everything, ids[image], boxes[image], 0.5)
        drawn = sampling.sample([i in positives for i in range(len(everything))], most, seeds[image, 0], 2)
        rest = sampling.sample([i in negatives for i in range(len(everything))], size - len(drawn), seeds[image, 0], 3)
        rows = len(drawn) + len(rest)
        np.testing.assert_array_equal(rois[:rows], everything[drawn + rest])
        assert weights.tolist() == [1] * rows + [0] * (size - rows) and not rois[rows:].any()
        assert class_ids.tolist() == [ids[image, owner[i]] for i in drawn] + [0] * (size - len(drawn))
        assert not targets[len(drawn):].any() and not deltas[len(drawn):].any()
        for row, index in enumerate(drawn):
            gt = boxes[image, owner[index]]
            np.testing.assert_allclose(deltas[row], detector.encode(rois[row].numpy(), gt, STD), atol=1e-4)
            border = gt if use_mini_mask else frame[image]
            expected = detector.mask_target(masks[image, ..., owner[index]].astype(float), rois[row].numpy(), border,
                                            shape)
            assert (targets[row].numpy() != expected).mean() <= 1 / 30, "only a sample exactly at one half may differ"


@pytest.mark.parametrize("order", ORDERS)
def test_soft_masks_equal_adaptive_roi_align(order):
    arguments = problem(40, mask=(60, 70), batch=2)
    for tensor in (arguments[0], arguments[2]):
        tensor *= 0.3
    arguments[4][:] = torch.tensor([0.0, 0, 59, 69])  # of internal boxes, which lack a pixel of half-open ones
    settings = {"append_gt": True, "mask_targets": "roi_align", "use_mini_mask": False, "mask_shape": (5, 4)}
    found, expected = both(arguments, order, **settings)
    assert_same(found, expected, atol=3e-5)
    rois, class_ids, _, targets, _ = found
    _, ids, boxes, masks, *_ = (tensor.numpy() for tensor in arguments)
    positives = int((class_ids[0] > 0).sum())
    assert positives > 5 and ((targets > 0.05) & (targets < 0.95)).any()
    for row in range(positives):
        roi = rois[0, row].numpy()
        overlaps = [detector.iou(box, roi) * (c > 0) for box, c in zip(boxes[0], ids[0], strict=True)]
        own = masks[0, ..., int(np.argmax(overlaps))][..., None].astype(float)
        wanted = pooling.roi_align(own, roi + [0, 0, 1, 1], (5, 4), 1.0, 0, False)[..., 0]
        np.testing.assert_allclose(targets[0, row], wanted, atol=1e-3)


@pytest.mark.parametrize("settings", [
    {}, {"compat": True}, {"compat": True, "positive_ratio": 0.77}, {"append_gt": True}, {"positive_iou": 0.0},
    {"size": 9, "max_positives": 9}, {"size": 300, "max_positives": 99, "append_gt": True}, {"mask_shape": (1, 3)},
    {"use_mini_mask": False}, {"use_mini_mask": False, "mask_targets": "roi_align"}], ids=str)
def test_all_settings_equal_the_array_operations(settings):
    assert_close(*both(problem(), order=7, **settings))


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 2000])
@pytest.mark.parametrize(("objects", "rows", "crowds"), [(0, 3, 0), (1, 1, 0), (3, 3, 3), (100, 110, 20)])
def test_sizes(count, objects, rows, crowds):
    arguments = problem(count, objects, rows, 2, (7, 9), crowds=crowds)
    assert_close(*both(arguments, order=1, append_gt=True, mask_shape=(4, 4)))


def test_no_ground_truth_rows_and_no_proposals(emulator):
    for count, rows in ((5, 0), (0, 0), (0, 2)):
        arguments = problem(count, 0, rows, 2)
        for compat in (False, True):
            rois, class_ids, deltas, masks, weights = roi_targets(*arguments, size=8, max_positives=3, compat=compat)
            assert not class_ids.any() and not deltas.any() and not masks.any() and masks.shape == (2, 3, 28, 28)
            assert (weights > 0).sum() == (16 if compat else 10 if count else 0)
            assert rois.any() == (count > 0 and not compat)


def test_proposals_without_area_with_nan_or_far_away():
    arguments = problem(60)
    proposals = arguments[0]
    proposals[:, :6, 2:] = proposals[:, :6, :2]
    proposals[:, 6:12] = proposals[:, 6:12, [2, 3, 0, 1]]
    proposals[:, 12:18, 3] = float("nan")
    proposals[:, 18:24] += 1e6
    found, expected = ((rois.nan_to_num(7), *others) for rois, *others in both(arguments))
    assert_close(found, expected)


def test_rois_over_the_border_of_the_masks():
    """ROIs that reach beyond the image by up to half their size, whose masks are cut from whole images."""
    arguments = problem(40, 6, 6, 1, (50, 40), crowds=0)
    arguments[4][:] = torch.tensor([0.0, 0, 50, 40])
    arguments[2] = torch.tensor([[-10.0, -5, 30, 30], [20, 10, 70, 60], [-8, 20, 20, 55], [0, 0, 50, 40],
                                 [49, 39, 51, 41], [-60, -60, -10, -10]])[None]
    arguments[0] = torch.cat([arguments[2] + shift for shift in (-1.5, -0.25, 0.0, 1.0)], dim=1)
    for kind in ("crop", "roi_align"):
        found, expected = both(arguments, use_mini_mask=False, mask_targets=kind, positive_iou=0.3)
        assert (found[1] > 0).sum() >= 15
        assert_close(found, expected)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.float32, torch.float16])
def test_masks_of_every_type(dtype):
    arguments = problem(40, batch=1)
    expected = both(arguments)[0]
    arguments[3] = arguments[3].to(dtype)
    assert_same(both(arguments)[0], expected, atol=0)


def test_op_is_well_formed(emulator):
    arguments = problem(20, 3, 4, 2)
    settings = {"size": 8, "max_positives": 3, "positive_iou": 0.5, "positive_ratio": 0.33, "weights": [1.0, 1, 1, 1],
                "mask_shape": [4, 4], "use_mini_mask": True, "append_gt": True, "compat": False, "mask_targets": "crop"}
    torch.library.opcheck(torch.ops.kmrcnn.roi_targets.default, tuple(arguments), settings)


@pytest.mark.parametrize("with_kernels", [False, True])
def test_layer_compiles_to_one_graph(with_kernels, request):
    if with_kernels:
        request.getfixturevalue("emulator")
    arguments = problem(30, 3, 4, 2)
    layer = DetectionTargetLayer(16, mask_shape=(5, 5), append_gt=True)
    expected = layer(*arguments)
    torch._dynamo.reset()
    assert_same(torch.compile(layer, fullgraph=True, backend="aot_eager")(*arguments), expected)


def test_no_gradient_flows_into_proposals(emulator):
    arguments = problem(20, 3, 4, 2)
    arguments[0].requires_grad_()
    assert not any(output.requires_grad for output in roi_targets(*arguments, size=8, max_positives=3))


def test_address_sanitizer_finds_nothing():
    run_sanitized(launch_everything)


def test_faults_are_caught():
    hard = problem(60, 6, 6, 2, (20, 30))
    hard[4][:] = torch.tensor([0.0, 0, 20, 30])
    for tensor in (hard[0], hard[2]):
        tensor *= 0.12
    settings = [{"size": 30, "max_positives": 15, "use_mini_mask": False, "append_gt": True, "mask_shape": (4, 6),
                 "mask_targets": kind} for kind in ("crop", "roi_align")]
    expected = [roi_targets(*hard, **how) for how in settings]

    def check(emulator) -> None:
        for emulator.order in ORDERS:
            for how, wanted in zip(settings, expected, strict=True):
                assert_close(roi_targets(*hard, **how), wanted)

    assert survivors("mask_targets.cu", [
        ("(float)y.samples;\n  }\n  __syncthreads();", "(float)y.samples;\n  }"),
        ("column <= last", "column < last"),
        ("samples += 1.f", "samples += 0.f"),
        ("image * gridDim.y + blockIdx.y) * cells", "blockIdx.y) * cells"),
        ("(upper + x.high)", "(upper + x.low)"),
    ], check) == []
    assert survivors("drawn_targets.cu", [
        ("truth[image * rows + slot - count]", "truth[image * rows + slot - count - 1]"), ("all_used || ", "!"),
    ], check) == []
