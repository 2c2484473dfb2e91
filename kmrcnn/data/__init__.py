"""Datasets, image handling, augmentation and the loader. numpy only: imports no Keras and no backend."""

from __future__ import annotations

import importlib

# Public name -> module. Imported on first use, so that loader workers start fast.
_PUBLIC = {
    "Dataset": "dataset",
    "SampleError": "dataset",
    "CocoDataset": "coco",
    "CocoJsonDataset": "coco",
    "ShapesDataset": "shapes",
    "NucleusDataset": "nucleus",
    "BalloonDataset": "balloon",
    "DataLoader": "loader",
    "load_image_gt": "sample",
    **dict.fromkeys(
        ("Affine", "AspectCrop", "Augmentation", "Blur", "Brightness", "ColorJitter", "Compose", "Contrast",
         "CopyPaste", "HSVJitter", "HorizontalFlip", "Noise", "OneOf", "Rotate90", "ScaleJitter", "Scene", "Transpose",
         "VerticalFlip"),
        "augment",
    ),
}


def __getattr__(name: str):
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"kmrcnn.data.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module 'kmrcnn.data' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(_PUBLIC)
