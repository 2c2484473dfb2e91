"""A small Mask R-CNN trains a step and detects with every op in its kernel: the same as without kernels."""

from __future__ import annotations

import re
from collections import Counter

import keras
import numpy as np
import pytest

from kmrcnn import kernels, ops
from kmrcnn.data.loader import DataLoader
from kmrcnn.data.shapes import ShapesDataset
from kmrcnn.engine.execution import Execution
from kmrcnn.engine.prepare import image_preparation
from kmrcnn.engine.step import build_train_step
from kmrcnn.kernels.module import FOLDER
from kmrcnn.model import MaskRCNN
from kmrcnn.models import build_training_model
from tests.kernels.emulation import emulation
from tests.tiny import TinyConfig

pytestmark = pytest.mark.once

CASES = {
    "default": {"APPEND_GT_TO_ROIS": True},
    "image_masks": {"APPEND_GT_TO_ROIS": True, "USE_MINI_MASK": False},
    "torchvision": {"PRESET": "torchvision"},
    "adaptive": {"PRESET": "detectron2"},
}


def _config(settings: dict) -> TinyConfig:
    config = TinyConfig()
    config.update({"IMAGE_MAX_DIM": 64, **settings})
    config.validate()
    return config


def _dataset(count: int) -> ShapesDataset:
    dataset = ShapesDataset()
    dataset.load_shapes(count, 64, 64, seed=3)
    dataset.prepare()
    return dataset


def _train_step(config: TinyConfig) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Scalars of one step on two pictures, and the weights after it."""
    keras.utils.set_random_seed(1)
    model = build_training_model(config)
    with DataLoader(_dataset(2), config, workers=0) as loader:
        batch = loader.batch(0)
    step = build_train_step(model, keras.optimizers.SGD(1e-2), config.LOSS_WEIGHTS, config.WEIGHT_DECAY,
                            execution=Execution(prepare=image_preparation(config)))
    scalars = {name: float(value) for name, value in step(batch).items()}
    return scalars, {v.path: keras.ops.convert_to_numpy(v) for v in model.weights}


def _detect(config: TinyConfig, folder: str) -> list[dict[str, np.ndarray]]:
    keras.utils.set_random_seed(1)
    model = MaskRCNN("inference", config, folder)
    return model.detect([_dataset(2).load_image(index) for index in range(2)])


@pytest.fixture(scope="module")
def launches() -> Counter:
    """Launches of all tests of this file, by kernel."""
    return Counter()


@pytest.mark.parametrize("name", CASES)
def test_a_step_and_a_detection_are_the_same_with_and_without_kernels(name, launches, tmp_path):
    config = _config(CASES[name])
    plain, detections = _train_step(config), _detect(config, str(tmp_path))
    with emulation() as emulator:
        kernel, found = _train_step(config), _detect(config, str(tmp_path))
        launches.update(emulator.launches)
    assert emulator.launches, "no kernel ran"
    assert all(value > 0 for loss, value in plain[0].items() if loss.endswith("loss")), "a loss compares nothing"
    for loss, value in plain[0].items():
        assert kernel[0][loss] == pytest.approx(value, rel=1e-5, abs=1e-6), loss
    for path, weight in plain[1].items():
        np.testing.assert_allclose(kernel[1][path], weight, rtol=1e-4, atol=1e-6, err_msg=path)
    for one, other in zip(found, detections, strict=True):
        assert len(other["rois"]) > 0
        np.testing.assert_array_equal(one["class_ids"], other["class_ids"])
        np.testing.assert_allclose(one["boxes"], other["boxes"], atol=1e-2)
        np.testing.assert_allclose(one["scores"], other["scores"], atol=1e-5)
        assert np.mean(one["masks"] != other["masks"]) < 1e-3


def test_every_kernel_ran(launches):
    """What a step and a detection do not need is launched here, by the functions people call."""
    if not launches:
        pytest.skip("needs the tests above in the same process")
    kernel = re.compile(r'extern "C" __global__ void (?:__launch_bounds__\([^)]*\)\s*)?(\w+)')
    names = {name for path in FOLDER.glob("*.cu") for name in kernel.findall(path.read_text("utf-8"))}
    rng = np.random.default_rng(0)
    with emulation() as emulator:
        assert "in use" in kernels.status()
        _call_the_others(rng)
        launches.update(emulator.launches)
    assert len(names) > 10 and names <= set(launches), f"never launched: {sorted(names - set(launches))}"


def _call_the_others(rng: np.random.Generator) -> None:
    import torch

    boxes = torch.tensor(np.array([[2, 3, 30, 40], [4, 3, 33, 42], [40, 40, 60, 60]], "float32"))
    scores = torch.tensor([0.9, 0.8, 0.7])
    ops.soft_nms(boxes, scores, 0.5, 3)
    many = torch.tensor(rng.random((5000, 2), "float32") * 600)
    ops.nms(torch.cat([many, many + 30], dim=1), torch.tensor(rng.random(5000, "float32")), 0.5, 10)
    masks = torch.tensor(rng.random((3, 28, 28), "float32"))
    for rule in ("matterport", "torchvision", "detectron2"):
        ops.paste_masks(masks, boxes, (64, 64), rule=rule)
        ops.paste_masks_rle(masks, boxes, (64, 64), rule=rule)
    logits = torch.tensor(rng.normal(size=(6, 4)).astype("float32"), requires_grad=True)
    targets = torch.tensor(rng.integers(0, 2, (6, 4)).astype("float32"))
    ops.sigmoid_focal_loss(logits, targets, 0.25, 2.0).sum().backward()
    maps = [torch.tensor(rng.normal(size=(1, 64 >> i, 64 >> i, 8)).astype("float32"), requires_grad=True)
            for i in range(4)]
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        ops.multilevel_roi_align(maps, boxes[None], 7, (4, 8, 16, 32), "aligned").sum().backward()
    finally:
        torch.use_deterministic_algorithms(deterministic)
