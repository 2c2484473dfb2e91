"""What is done to a batch's pixels on the device: 8-bit levels to the network's normalised floats."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

_WINDOW = slice(7, 11)  # y1 x1 y2 x2 in an image meta, see kmrcnn.data.image.compose_image_meta


def image_preparation(config: Any) -> Callable[[dict], dict]:
    """The `Execution.prepare` of a Config: a function from the tensors of a batch to the model's inputs.

    Of `input_image` (B, H, W, C) in whole numbers it makes (x - MEAN_PIXEL) / STD_PIXEL in float32. In
    IMAGE_RESIZE_MODE "shortest" it then sets to zero what lies outside the window that `input_image_meta`
    (B, 12 + NUM_CLASSES) names. Floating-point images pass as they are: they count as normalised. So the same numbers
    come out as from `kmrcnn.data.image.mold_image`, of a quarter of the bytes on the way to the device.

    Example:
        execution = Execution(prepare=image_preparation(config))
        step = build_train_step(model, optimizer, config.LOSS_WEIGHTS, config.WEIGHT_DECAY, execution=execution)
    """
    # Tensors made here are constants of a traced step; made inside, each call would send them to the device.
    mean, std = (ops.convert_to_tensor(np.asarray(v, np.float32)) for v in (config.MEAN_PIXEL, config.STD_PIXEL))
    scaled = bool((np.asarray(config.STD_PIXEL) != 1).any())
    clears = config.IMAGE_RESIZE_MODE == "shortest"

    def prepare(inputs: dict) -> dict:
        image = inputs["input_image"]
        if "float" in keras.backend.standardize_dtype(image.dtype):
            return inputs
        image = ops.cast(image, "float32") - mean
        if scaled:
            image = image / std
        if clears:
            inside = _inside(inputs["input_image_meta"][:, _WINDOW], *image.shape[1:3])
            image = ops.where(inside, image, ops.zeros_like(image))
        return {**inputs, "input_image": image}

    return prepare


def _inside(windows: Any, height: int, width: int) -> Any:
    """bool (B, height, width, 1): whether a pixel lies in its image's window, (B, 4) y1x1y2x2, half-open."""
    rows, columns = (ops.arange(size, dtype="float32")[None] for size in (height, width))
    y1, x1, y2, x2 = (windows[:, i : i + 1] for i in range(4))
    rows, columns = (rows >= y1) & (rows < y2), (columns >= x1) & (columns < x2)
    return (rows[:, :, None] & columns[:, None, :])[..., None]
