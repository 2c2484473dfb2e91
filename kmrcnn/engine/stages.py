"""Which layers train: Matterport's stages by layer name."""

from __future__ import annotations

import re

import keras

_HEADS = r"(mrcnn\_.*)|(rpn\_.*)|(fpn\_.*)"

# Regular expressions of layer names by the short names that `MaskRCNN.train` takes. Heads are everything above the
# backbone; "N+" adds the ResNet stages from N on; conv1 and stage 2 train with "all" only.
LAYER_STAGES = {
    "heads": _HEADS,
    "5+": rf"(res5.*)|(bn5.*)|{_HEADS}",
    "4+": rf"(res4.*)|(bn4.*)|(res5.*)|(bn5.*)|{_HEADS}",
    "3+": rf"(res3.*)|(bn3.*)|(res4.*)|(bn4.*)|(res5.*)|(bn5.*)|{_HEADS}",
    "all": ".*",
}


def set_trainable(model: keras.Model, layer_regex: str, indent: int = 0, verbose: int = 1) -> int:
    """Make exactly those layers with weights trainable whose whole name matches; nested models are looked into.

    Args:
        verbose: 1 prints the chosen layers, `indent` columns in.

    Returns:
        How many layers matched.
    """
    pattern, count = re.compile(layer_regex), 0
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            if verbose:
                print(f"{'':{indent}}In model: {layer.name}")
            count += set_trainable(layer, layer_regex, indent + 4, verbose)
        elif layer.weights:
            layer.trainable = bool(pattern.fullmatch(layer.name))
            count += layer.trainable
            if verbose and layer.trainable:
                print(f"{'':{indent}}{layer.name:20}   ({type(layer).__name__})")
    return count


def select_layers(model: keras.Model, layer_regex: str, verbose: int = 1) -> None:
    """`set_trainable`, with a word about it.

    Raises:
        ValueError: no layer matches, or it is no regular expression.
    """
    if verbose:
        print("Selecting layers to train")
    try:
        re.compile(layer_regex)
    except re.error as error:
        raise ValueError(f"layers: {layer_regex!r} is no regular expression of layer names: {error}") from None
    if not set_trainable(model, layer_regex, verbose=verbose):
        raise ValueError(f"layers: no layer with weights matches {layer_regex!r}; use {', '.join(LAYER_STAGES)} or a "
                         "regular expression of layer names")
