"""Train and evaluate the tiny network on so many devices, as a user's script does; run by test_devices.py.

    KERAS_BACKEND=jax python -m tests.devices_run FOLDER DEVICES

Writes final.h5, history.json and detections.json into the folder, and rank<N>.txt with a digest of the weights.
"""

from __future__ import annotations

import functools
import hashlib
import json
import sys
from pathlib import Path

from kmrcnn import MaskRCNN
from kmrcnn.data import HorizontalFlip, ShapesDataset
from kmrcnn.engine import launch
from kmrcnn.evaluation.coco import evaluate_coco
from tests.tiny import TinyConfig

IMAGES = 4  # of a step, over all devices


def shapes(count: int, seed: int) -> ShapesDataset:
    """Pictures of 64 x 64 with very different numbers of shapes."""
    dataset = ShapesDataset()
    dataset.load_shapes(count, 64, 64, seed=seed)
    dataset.prepare()
    return dataset


def run(folder: Path, devices: int) -> None:
    """Five steps on 22 pictures, validation on 6, evaluation on 7."""
    config = TinyConfig()
    config.update({"NAME": "devices", "GPU_COUNT": devices, "IMAGES_PER_GPU": IMAGES // devices, "STEPS_PER_EPOCH": 5,
                   "VALIDATION_STEPS": 2, "APPEND_GT_TO_ROIS": True, "LEARNING_RATE": 1e-3, "LOADER_WORKERS": 1,
                   "RPN_ANCHOR_STRIDE": 2, "PRE_NMS_LIMIT": 60, "DETECTION_MIN_CONFIDENCE": 0,
                   "EVALUATE_EPOCHS": 1, "EMA_DECAY": 0.9, "EMA_RAMP": 2, "LR_SCHEDULE": "cosine",
                   "BIAS_LR_FACTOR": 2.0})
    model = MaskRCNN("training", config, folder / "logs")
    history = model.train(shapes(22, 3), shapes(6, 4), None, 1, "all", HorizontalFlip(0.5), verbose=0)
    weights = b"".join(array.tobytes() for array in model.keras_model.get_weights())
    (folder / f"rank{model.replicas.rank}.txt").write_text(hashlib.sha256(weights).hexdigest())
    if model.replicas.is_main:
        model.save_weights(folder / "final.h5")
        (folder / "history.json").write_text(json.dumps(history.history))
    model.replicas.barrier()
    tester = MaskRCNN("inference", config, folder / "logs")
    tester.load_weights(folder / "final.h5")
    found = evaluate_coco(tester, shapes(7, 5), verbose=0, eval_type="both", replicas=tester.replicas)
    if found is not None:
        found.save(folder / "detections.json")


if __name__ == "__main__":
    launch.run(functools.partial(run, Path(sys.argv[1]), int(sys.argv[2])), int(sys.argv[2]))
