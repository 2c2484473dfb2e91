"""Files of torchvision: Mask and Faster R-CNN with ResNet-FPN, and classification ResNets, ResNeXts, wide ResNets.

Version 1 of the detectors names single convolutions (`inner_blocks.0.weight`, `mask_fcn1`, `rpn.head.conv`) in files of
before 2022 and blocks of one convolution (`inner_blocks.0.0.weight`, `mask_head.0.0`, `rpn.head.conv.0.0`) since;
version 2 adds batch norm to the pyramid and the heads, a convolution to the RPN and four to the box head. Trained on
RGB images; Caffe's networks under these names (`resnet50_caffe.pth` of Detectron.pytorch) were not: load these with
`flip_input=True`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from kmrcnn.importers.assign import WeightKey
from kmrcnn.importers.maps import Format, Row
from kmrcnn.importers.transforms import BATCH_NORM, BOX_DELTAS, CONV, DECONV, DENSE, FC, FIRST_FC, RPN_DELTAS


def stages(prefix: str) -> tuple[Row, ...]:
    """Stages 2 to 5 of a ResNet under torchvision's names."""
    return (
        Row(prefix + "layer{layer}.{block}.conv{conv}", "res{layer}{block}_branch{conv}", CONV),
        Row(prefix + "layer{layer}.{block}.bn{conv}", "bn{layer}{block}_branch{conv}", BATCH_NORM),
        Row(prefix + "layer{layer}.{block}.downsample.0", "res{layer}{block}_branch1", CONV),
        Row(prefix + "layer{layer}.{block}.downsample.1", "bn{layer}{block}_branch1", BATCH_NORM),
    )


def body(prefix: str) -> tuple[Row, ...]:
    """A whole ResNet under torchvision's names."""
    return Row(f"{prefix}conv1", "conv1", CONV), Row(f"{prefix}bn1", "bn_conv1", BATCH_NORM), *stages(prefix)


_FC6_VERSION_1 = Row("roi_heads.box_head.fc6", "mrcnn_class_conv1", FIRST_FC)
_FC6_VERSION_2 = Row("roi_heads.box_head.5", "mrcnn_class_conv1", FIRST_FC)

# The names that torchvision writes today.
_DETECTOR = (
    *body("backbone.body."),
    Row("backbone.fpn.inner_blocks.{level0}.0", "fpn_c{level0}p{level0}", CONV),
    Row("backbone.fpn.inner_blocks.{level0}.1", "fpn_c{level0}p{level0}_norm", BATCH_NORM),
    Row("backbone.fpn.layer_blocks.{level0}.0", "fpn_p{level0}", CONV),
    Row("backbone.fpn.layer_blocks.{level0}.1", "fpn_p{level0}_norm", BATCH_NORM),
    Row("rpn.head.conv.{rpn_conv}.0", "rpn_conv_shared{rpn_conv}", CONV),
    Row("rpn.head.cls_logits", "rpn_class_raw", CONV),
    Row("rpn.head.bbox_pred", "rpn_bbox_pred", RPN_DELTAS),
    Row("roi_heads.box_head.{index0}.0", "mrcnn_class_xconv{index0}", CONV),
    Row("roi_heads.box_head.{index0}.1", "mrcnn_class_xbn{index0}", BATCH_NORM),
    Row("roi_heads.box_head.fc7", "mrcnn_class_conv2", FC),
    Row("roi_heads.box_predictor.cls_score", "mrcnn_class_logits", DENSE),
    Row("roi_heads.box_predictor.bbox_pred", "mrcnn_bbox_fc", BOX_DELTAS),
    Row("roi_heads.mask_head.{index0}.0", "mrcnn_mask_conv{index0}", CONV),
    Row("roi_heads.mask_head.{index0}.1", "mrcnn_mask_bn{index0}", BATCH_NORM),
    Row("roi_heads.mask_predictor.conv5_mask", "mrcnn_mask_deconv", DECONV),
    Row("roi_heads.mask_predictor.mask_fcn_logits", "mrcnn_mask", CONV),
)

_BEFORE_2022 = (
    Row("backbone.fpn.inner_blocks.{level0}", "fpn_c{level0}p{level0}", CONV),
    Row("backbone.fpn.layer_blocks.{level0}", "fpn_p{level0}", CONV),
    Row("rpn.head.conv", "rpn_conv_shared", CONV),
    Row("roi_heads.mask_head.mask_fcn{index}", "mrcnn_mask_conv{index}", CONV),
)

FORMAT = Format(
    name="torchvision_file",
    sign=r"backbone\.body\.(conv1|bn1|layer\d)\b|backbone\.fpn\.(inner|layer)_blocks\.|layer\d\.\d+\.conv\d\b",
    ignored=(r".*\.num_batches_tracked", r"fc\.(weight|bias)"),
    rows=(*_DETECTOR, _FC6_VERSION_1, _FC6_VERSION_2, *_BEFORE_2022, *body("")),
)


def state_dict(arrays: Mapping[WeightKey, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays of a detector under the names and in the layouts of torchvision's own `state_dict()`.

    Raises:
        ValueError: torchvision's models have no place for a weight, for instance for biases before a batch norm, a
            softmax RPN or class-agnostic boxes.
    """
    convolutions = any(layer.startswith("mrcnn_class_xconv") for layer, _ in arrays)
    table = Format(FORMAT.name, FORMAT.sign, (*_DETECTOR, _FC6_VERSION_2 if convolutions else _FC6_VERSION_1))
    _check(arrays)
    named = {key: table.file_name(key) for key in arrays}
    if homeless := ["/".join(key) for key, hit in named.items() if hit is None or _biased_twice(key, arrays)]:
        more = f" and {len(homeless) - 4} more" if len(homeless) > 4 else ""
        raise ValueError(f"torchvision's models have no place for {', '.join(homeless[:4])}{more}: only networks "
                         "built as torchvision's can be saved for it.")
    return {name: np.ascontiguousarray(transform.write(arrays[key]), dtype=np.float32)
            for key, (name, transform) in named.items()}


def _biased_twice(key: WeightKey, arrays: Mapping[WeightKey, np.ndarray]) -> bool:
    """True for the bias of a convolution that a normalisation follows; torchvision's have none."""
    layer, weight = key
    norm = {"conv1": "bn_conv1"}.get(layer, layer.replace("res", "bn", 1) if layer.startswith("res") else None)
    norm = norm or layer.replace("_xconv", "_xbn").replace("mask_conv", "mask_bn")
    followers = {norm, f"{layer}_norm"} - {layer}
    return weight == "bias" and any((follower, "gamma") in arrays for follower in followers)


def _check(arrays: Mapping[WeightKey, np.ndarray]) -> None:
    scores, anchors = arrays.get(("rpn_class_raw", "bias")), arrays.get(("rpn_bbox_pred", "bias"))
    if scores is not None and anchors is not None and 4 * len(scores) != len(anchors):
        raise ValueError("torchvision's RPN has one sigmoid score an anchor (RPN_SCORES), this one has two logits.")
    classes, deltas = arrays.get(("mrcnn_class_logits", "bias")), arrays.get(("mrcnn_bbox_fc", "bias"))
    if classes is not None and deltas is not None and 4 * len(classes) != len(deltas):
        raise ValueError("torchvision's boxes are class-specific, this model's are class-agnostic.")
