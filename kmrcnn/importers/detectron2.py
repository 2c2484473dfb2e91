"""Files of detectron2: its model zoo (`.pkl` and `.pth`) with FPN or C4, and ImageNet networks in its names.

The background is the last class, and has neither boxes nor a mask. Trained on BGR images unless the file's own
`pixel_mean` runs from red to blue; ImageNet networks in these names are torchvision's, trained on RGB. Where a cell
has anchors of several sizes (C4), detectron2 counts the ratios first, of which it has three.
"""

from __future__ import annotations

import numpy as np

from kmrcnn.importers.maps import Format, Row
from kmrcnn.importers.transforms import (
    BATCH_NORM,
    CONV,
    DECONV,
    FC,
    FIRST_FC,
    TensorFile,
    add_background,
    add_background_deltas,
    background_first,
    conv,
    dense,
    swap_axes,
)

_RATIOS = 3


def _stages(prefix: str, block: str, names: str) -> tuple[Row, ...]:
    return (
        Row(f"{prefix}{block}.conv{{conv}}", f"res{names}_branch{{conv}}", CONV),
        Row(f"{prefix}{block}.conv{{conv}}.norm", f"bn{names}_branch{{conv}}", BATCH_NORM),
        Row(f"{prefix}{block}.shortcut", f"res{names}_branch1", CONV),
        Row(f"{prefix}{block}.shortcut.norm", f"bn{names}_branch1", BATCH_NORM),
    )


def _body(prefix: str) -> tuple[Row, ...]:
    return (
        Row(f"{prefix}stem.conv1", "conv1", CONV),
        Row(f"{prefix}stem.conv1.norm", "bn_conv1", BATCH_NORM),
        *_stages(prefix, "res{stage}.{block}", "{stage}{block}"),
    )


def _scores(rows: np.ndarray, file: TensorFile) -> np.ndarray:
    """One row an anchor, the sizes of a ratio side by side."""
    if len(rows) % _RATIOS:
        return rows  # one size of other ratios
    sizes = len(rows) // _RATIOS
    return np.swapaxes(rows.reshape(sizes, _RATIOS, *rows.shape[1:]), 0, 1).reshape(rows.shape)


def _deltas(rows: np.ndarray, file: TensorFile) -> np.ndarray:
    """Four rows an anchor, in the same order."""
    anchors = rows.reshape(-1, 4, *rows.shape[1:])
    return swap_axes(_scores(anchors, file).reshape(rows.shape))


def _bgr(file: TensorFile) -> bool:
    mean = file.tensors.get("pixel_mean")
    if mean is not None and np.size(mean) == 3:
        blue, _, red = np.ravel(mean)
        return bool(blue <= red)
    return "stem.conv1.weight" not in file.tensors


FORMAT = Format(
    name="detectron2_file",
    sign=r"backbone\.(bottom_up\.|stem\.|fpn_lateral|res\d)|(stem|res\d\.\d+)\.conv\d\.|proposal_generator\.",
    bgr=_bgr,
    ignored=(r".*\.num_batches_tracked", r"pixel_(mean|std)", r"(stem|backbone\.bottom_up)\.fc\.(weight|bias)",
             r"proposal_generator\.anchor_generator\.cell_anchors\.\d+"),
    rows=(
        *_body("backbone.bottom_up."),
        *_body("backbone."),
        *_body(""),
        *_stages("roi_heads.", "res5.{block}", "5{block}"),
        Row("backbone.fpn_lateral{pyramid}", "fpn_c{pyramid}p{pyramid}", CONV),
        Row("backbone.fpn_lateral{pyramid}.norm", "fpn_c{pyramid}p{pyramid}_norm", BATCH_NORM),
        Row("backbone.fpn_output{pyramid}", "fpn_p{pyramid}", CONV),
        Row("backbone.fpn_output{pyramid}.norm", "fpn_p{pyramid}_norm", BATCH_NORM),
        Row("proposal_generator.rpn_head.conv", "rpn_conv_shared", CONV),
        Row("proposal_generator.rpn_head.conv.conv{rpn_conv}", "rpn_conv_shared{rpn_conv}", CONV),
        Row("proposal_generator.rpn_head.objectness_logits", "rpn_class_raw", conv(_scores)),
        Row("proposal_generator.rpn_head.anchor_deltas", "rpn_bbox_pred", conv(_deltas)),
        Row("roi_heads.box_head.conv{index}", "mrcnn_class_xconv{index}", CONV),
        Row("roi_heads.box_head.conv{index}.norm", "mrcnn_class_xbn{index}", BATCH_NORM),
        Row("roi_heads.box_head.fc1", "mrcnn_class_conv1", FIRST_FC),
        Row("roi_heads.box_head.fc2", "mrcnn_class_conv2", FC),
        Row("roi_heads.box_predictor.cls_score", "mrcnn_class_logits", dense(background_first)),
        Row("roi_heads.box_predictor.bbox_pred", "mrcnn_bbox_fc", dense(add_background_deltas)),
        Row("roi_heads.mask_head.mask_fcn{index}", "mrcnn_mask_conv{index}", CONV),
        Row("roi_heads.mask_head.mask_fcn{index}.norm", "mrcnn_mask_bn{index}", BATCH_NORM),
        Row("roi_heads.mask_head.deconv", "mrcnn_mask_deconv", DECONV),
        Row("roi_heads.mask_head.predictor", "mrcnn_mask", conv(add_background)),
    ),
)
