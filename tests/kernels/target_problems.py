"""Ground truth, anchors and proposals for the tests of training targets, and how results are compared."""

from __future__ import annotations

import numpy as np
import torch

SEEDS = np.array([[3], [-4], [2**31 - 1], [-(2**31)], [0]], "int32")
WEIGHTS = (10.0, 10.0, 5.0, 5.0)
STD = np.array([0.1, 0.1, 0.2, 0.2])


def ground_truth(rng: np.random.Generator, batch: int, objects: int, rows: int, extent: float = 200.0,
                 crowds: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """class_ids (batch, rows) and boxes (batch, rows, 4); `objects` of the first image, the last of them crowds, none
    in the last image, unless it is the only one; padding in between as well as at the end."""
    ids, boxes = np.zeros((batch, rows), "int32"), np.zeros((batch, rows, 4), "float32")
    corner = rng.uniform(0, 0.7 * extent, (batch, objects, 2))
    sides = rng.uniform(0.1, 0.4, (batch, objects, 2)) * extent
    places = np.sort(rng.permutation(rows)[:objects])
    ids[:, places] = rng.integers(1, 5, (batch, objects))
    ids[:, places[objects - min(crowds, objects):]] *= -1
    boxes[:, places] = np.concatenate([corner, corner + sides], axis=-1)
    if batch > 1:
        ids[-1], boxes[-1] = 0, 0
    return ids, boxes


def random_anchors(rng: np.random.Generator, count: int, extent: float = 200.0) -> np.ndarray:
    """(count, 4), some of them beyond the borders."""
    corner = rng.uniform(-0.1, 0.8, (count, 2)) * extent
    return np.concatenate([corner, corner + rng.uniform(0.05, 0.45, (count, 2)) * extent], axis=1).astype("float32")


def proposals_near(rng: np.random.Generator, boxes: np.ndarray, count: int, extent: float = 200.0) -> np.ndarray:
    """(B, count, 4): half of them near ground truth, a tenth padding."""
    near = boxes[:, rng.integers(0, boxes.shape[1], count)] + rng.uniform(-12, 12, (*boxes.shape[:1], count, 4))
    far = np.stack([random_anchors(rng, count, extent) for _ in boxes])
    proposals = np.where(np.arange(count)[None, :, None] % 2 == 0, near, far)
    proposals[:, count - count // 10:] = 0
    return proposals.astype("float32")


def tensors(*arrays) -> list:
    """Arrays as tensors; None stays."""
    return [array if array is None else torch.from_numpy(np.ascontiguousarray(array)) for array in arrays]


def assert_same(found, expected, atol: float = 1e-5) -> None:
    """Equal integers, floats to `atol`; and no kernel left a value unwritten."""
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        if a.is_floating_point():
            torch.testing.assert_close(a, b, rtol=1e-5, atol=atol)
        else:
            assert torch.equal(a, b), f"{(a != b).sum().item()} of {a.numel()} differ"


def launch_everything() -> None:
    """Every kernel of training targets once, at awkward sizes. Needs no Keras, so it also runs under a sanitizer."""
    from kmrcnn.kernels.roi_targets import roi_targets
    from kmrcnn.kernels.rpn_targets import rpn_targets
    from tests.kernels.emulation import emulation

    rng = np.random.default_rng(0)
    ids, boxes = ground_truth(rng, 2, 67, 70)
    anchors, proposals = random_anchors(rng, 1301), proposals_near(rng, boxes, 259)
    masks, frame = rng.random((2, 33, 41, 70)) > 0.3, np.array([[0, 0, 33, 41]] * 2, "float32")
    shared = {"weights": WEIGHTS, "crowd_iou": 0.001, "stream": 0, "positive_iou": 0.5}
    with emulation() as emulator:
        for size, compat in ((7, True), (300, False)):
            rpn_targets(*tensors(anchors, ids, boxes, SEEDS[:2], frame), size=size, max_positives=size // 2,
                        negative_iou=0.3, compat=compat, reassign=True, straddle=500.0, tie=1e-5, **shared)
        for kind, values in (("crop", masks), ("crop", masks.astype("float32")), ("roi_align", masks)):
            roi_targets(*tensors(proposals, ids, boxes, values, frame, SEEDS[:2]), size=61, max_positives=20,
                        positive_ratio=0.33, mask_shape=(9, 7), use_mini_mask=False, append_gt=True, compat=False,
                        mask_targets=kind, **shared)
    assert emulator.launches["draw_rows"] == 5 and emulator.launches["align_targets"] == 1
