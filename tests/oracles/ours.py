"""The package's side of a comparison: a small inference model of a catalogue entry, and its tensors as NCHW."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import torch

from kmrcnn import MaskRCNN
from kmrcnn.config import Config
from kmrcnn.data.image import compose_image_meta
from kmrcnn.importers.catalogue import config as catalogue_config
from kmrcnn.importers.catalogue import find

# Few proposals and detections: comparisons of networks need some ROIs only.
SMALL = {"IMAGES_PER_GPU": 1, "PRE_NMS_LIMIT": 50, "PRE_NMS_LIMIT_INFERENCE": 50, "POST_NMS_ROIS_INFERENCE": 6,
         "DETECTION_MAX_INSTANCES": 4, "DETECTION_MIN_CONFIDENCE": 0}


def small_config(entry: str, **changes: Any) -> Config:
    """The settings of a catalogue entry with few proposals, and `changes`."""
    named = {} if "NAME" in find(entry).config else {"NAME": "oracle", "NUM_CLASSES": 3}
    return catalogue_config(entry, **{**named, **SMALL, **changes})


def load(entry: str, path, model_dir, by_name: bool = False, **changes: Any) -> tuple[MaskRCNN, Any]:
    """(model with the file's weights, load report)."""
    model = MaskRCNN("inference", small_config(entry, **changes), model_dir)
    return model, model.load_weights(path, by_name=by_name)


def stage_outputs(model: MaskRCNN, blocks: tuple[int, ...], last_stage: int = 5) -> list[str]:
    """Layer names of C2..C{last_stage}."""
    def letter(index: int) -> str:
        first, second = divmod(index, 26)
        return chr(ord("a") + second) if first == 0 else chr(ord("a") + first - 1) + chr(ord("a") + second)

    return [f"res{stage}{letter(blocks[stage - 2] - 1)}_out" for stage in range(2, last_stage + 1)]


def level_outputs(model: MaskRCNN) -> list[str]:
    """Layer names of P2..P6: the last layer of each level."""
    names = {layer.name for layer in model.keras_model.layers}
    return [name if (name := f"fpn_p{level}_norm") in names else f"fpn_p{level}" for level in (2, 3, 4, 5, 6)]


def run(model: MaskRCNN, image: np.ndarray, layers: list[str],
        levels: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Outputs of layers and model outputs by name, of one molded image (H, W, 3).

    levels: names of the maps the RPN sees; with them the result has "rpn_class_logits" (1, A, 2), which an inference
    graph does not give.
    """
    graph = model.keras_model
    outputs = {name: _tensor(graph, name) for name in [*layers, *levels]}
    if levels:
        rpn = graph.get_layer("rpn_model")
        logits = [rpn(outputs[name])[0] for name in levels]
        outputs["rpn_class_logits"] = keras.ops.concatenate(logits, axis=1) if len(logits) > 1 else logits[0]
    height, width = image.shape[:2]
    meta = compose_image_meta(0, image.shape, image.shape, (0, 0, height, width), 1.0,
                              np.zeros(model.config.NUM_CLASSES))
    results = keras.Model(graph.input, outputs)({"input_image": image[None].astype(np.float32),
                                                 "input_image_meta": meta[None].astype(np.float32)})
    return keras.tree.map_structure(keras.ops.convert_to_numpy, results)


def _tensor(graph: keras.Model, name: str):
    return graph.output[name] if name in graph.output else graph.get_layer(name).output


def nchw(array: np.ndarray) -> torch.Tensor:
    """(..., H, W, C) -> (-1, C, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(array.reshape(-1, *array.shape[-3:]))).permute(0, 3, 1, 2).contiguous()


def assert_close(ours: Any, reference: Any, what: str, tolerance: float = 1e-4) -> None:
    """Equal to `tolerance` of the reference's root mean square, which must be that of sound activations."""
    ours, reference = np.asarray(ours, np.float64), np.asarray(reference, np.float64)
    assert ours.shape == reference.shape, f"{what}: {ours.shape}, expected {reference.shape}"
    scale = np.sqrt(np.mean(reference**2))
    assert 0.01 < scale < 300, f"{what}: the reference's root mean square is {scale}"
    error = np.abs(ours - reference).max() / scale
    assert error <= tolerance, f"{what}: error {error:.2e} of the root mean square"
