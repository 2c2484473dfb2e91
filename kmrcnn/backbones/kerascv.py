"""Backbones of keras-cv and keras-hub as `Config.BACKBONE`.

    class CellsConfig(Config):
        BACKBONE = KerasBackbone("resnet_50_imagenet")        # a preset of keras-hub or keras-cv, fetched by them
        MEAN_PIXEL, STD_PIXEL = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)   # what it was trained with

Everything with feature maps at strides 4, 8, 16 and 32 works: `pyramid_outputs` (keras-hub) or `pyramid_level_inputs`
(keras-cv), P2 to P5. `pip install 'kmrcnn[kerascv]'` brings keras-cv, which needs TensorFlow installed whatever the
backend; keras-hub is used where it is installed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

LEVELS = ("P2", "P3", "P4", "P5")  # strides 4, 8, 16, 32


class KerasBackbone:
    """A value for `Config.BACKBONE`, made from a backbone of keras-cv or keras-hub.

    Args:
        source: the name of a preset; or a function without arguments that returns a backbone; or a backbone, which
            all models built with this configuration then share.
    """

    def __init__(self, source: str | Callable[[], keras.Model] | keras.Model):
        self.source = source

    def __call__(self, image: keras.KerasTensor, stage5: bool = True, train_bn: bool | None = None) -> list:
        """Feature maps [C1, ..., C5] of a (B, H, W, C) image; C1, and without stage5 C5, may be None.

        Args:
            train_bn: True, False: batch normalisation as in training, or with its stored statistics; None: as the
                model is called.
        """
        features = pyramid(self._backbone())
        network = keras.Model(features["input"], [features[level] for level in LEVELS], name="backbone")
        maps = network(image) if train_bn is None else FixedMode(network, train_bn, name="backbone_mode")(image)
        return [None, *maps] if stage5 else [None, *maps[:3], None]

    def __deepcopy__(self, memo: dict) -> KerasBackbone:
        return self  # copies of a configuration share it, as they share a function

    def __getstate__(self) -> dict[str, Any]:
        # Loader processes get the configuration without the network, which they have no use for.
        return {"source": None if isinstance(self.source, keras.Model) else self.source}

    def _backbone(self) -> keras.Model:
        if self.source is None:
            raise ValueError("BACKBONE: this copy came without its network; give KerasBackbone a name or a function")
        if isinstance(self.source, str):
            return from_preset(self.source)
        return self.source if isinstance(self.source, keras.Model) else self.source()


class FixedMode(keras.Model):
    """A network that always runs as in training, or never, whatever mode the model around it is called in."""

    def __init__(self, network: keras.Model, training: bool, **kwargs: Any):
        super().__init__(**kwargs)
        self.network, self.mode = network, training

    def call(self, image):
        return self.network(image, training=self.mode)

    def compute_output_spec(self, image):
        return self.network.compute_output_spec(image)


def pyramid(backbone: keras.Model) -> dict[str, Any]:
    """The backbone's "input" and its feature maps "P2" to "P5".

    Raises:
        ValueError: it does not offer these levels.
    """
    levels = getattr(backbone, "pyramid_outputs", None)
    if levels is None:
        names = getattr(backbone, "pyramid_level_inputs", None) or {}
        levels = {level: backbone.get_layer(name).output for level, name in names.items()}
    levels = {str(level) if str(level).startswith("P") else f"P{level}": tensor for level, tensor in levels.items()}
    if missing := [level for level in LEVELS if level not in levels]:
        raise ValueError(f"BACKBONE: {type(backbone).__name__} {backbone.name!r} has the levels "
                         f"{sorted(levels) or 'none'}, and lacks {', '.join(missing)}")
    return {"input": backbone.inputs[0], **levels}


def from_preset(name: str) -> keras.Model:
    """A backbone with its weights by the preset's name, of keras-hub if that is installed, else of keras-cv.

    Raises:
        ImportError: neither can be imported.
    """
    failures = []
    for find in (_from_keras_hub, _from_keras_cv):
        try:
            return find(name)
        except ImportError as error:
            failures.append(str(error))
    raise ImportError(f"BACKBONE={name!r} is a preset of keras-hub or keras-cv; pip install 'kmrcnn[kerascv]' brings "
                      f"keras-cv, which needs tensorflow too ({'; '.join(failures)})")


def _from_keras_hub(name: str) -> keras.Model:
    from keras_hub.models import Backbone

    return Backbone.from_preset(name)


def _from_keras_cv(name: str) -> keras.Model:
    # Not part of its public names, but the last release is the last.
    from keras_cv.src.models.backbones.backbone import Backbone
    from keras_cv.src.models.backbones.backbone_presets import backbone_presets

    return Backbone.from_preset(backbone_presets.get(name, {}).get("kaggle_handle", name))
