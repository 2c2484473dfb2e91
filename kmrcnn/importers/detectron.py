"""Files of Detectron (Caffe2 `.pkl`): its model zoo with FPN or C4, GN, ResNeXt, and its ImageNet networks.

Batch norm is folded into scale and bias, but not in the ImageNet networks that detectron2 publishes in these names.
Trained on BGR images. Files also hold what training left behind: momenta,
the learning rate, ImageNet's classifier, and biases of convolutions whose bias is the batch norm's.
"""

from __future__ import annotations

import numpy as np

from kmrcnn.importers.maps import CAFFE2, Format, Row
from kmrcnn.importers.transforms import (
    BATCH_NORM,
    CONV,
    DECONV,
    DENSE,
    FC,
    FIRST_FC,
    RPN_DELTAS,
    SCALE,
    TensorFile,
    class_deltas,
    dense,
)


def _class_deltas(rows: np.ndarray, file: TensorFile) -> np.ndarray:
    """Deltas of networks older than the key BBOX_REG_WEIGHTS are not divided by its default, (10, 10, 5, 5)."""
    rows, settings = class_deltas(rows, file), file.extras.get("cfg")
    if not isinstance(settings, str) or "BBOX_REG_WEIGHTS" in settings:
        return rows
    weights = np.tile(np.array([10, 10, 5, 5], rows.dtype), len(rows) // 4)
    return rows * weights.reshape(-1, *[1] * (rows.ndim - 1))


def _pyramid(file: str, layer: str) -> tuple[Row, ...]:
    return Row(file, layer, CONV), Row(f"{file}_gn", f"{layer}_norm", SCALE)


_IGNORED = (r".*_momentum", r"lr", r"weight_order", r"(fc1000|pred)_[wb]")
_ZEROS = (r"conv1_b", r"res\d_\d+_branch(1|2[abc])_b")

FORMAT = Format(
    name="detectron_file",
    sign=r"conv1_w|res\d_\d+_branch2a_w|fpn_inner_res\d_",
    endings=CAFFE2,
    bgr=True,
    ignored=_IGNORED,
    zeros=_ZEROS,
    rows=(
        Row("conv1", "conv1", {"kernel": CONV["kernel"]}),
        Row("res_conv1_bn", "bn_conv1", SCALE, folded=True),
        Row("conv1_gn", "bn_conv1", SCALE),
        Row("res{stage}_{block}_branch{branch}", "res{stage}{block}_branch{branch}", {"kernel": CONV["kernel"]}),
        Row("res{stage}_{block}_branch{branch}_bn", "bn{stage}{block}_branch{branch}", SCALE, folded=True),
        Row("res{stage}_{block}_branch{branch}_gn", "bn{stage}{block}_branch{branch}", SCALE),
        *_pyramid("fpn_inner_res{stage}_{last}_sum_lateral", "fpn_c{stage}p{stage}"),
        *_pyramid("fpn_inner_res{stage}_{last}_sum", "fpn_c{stage}p{stage}"),
        *_pyramid("fpn_res{stage}_{last}_sum", "fpn_p{stage}"),
        Row("conv_rpn_fpn2", "rpn_conv_shared", CONV),
        Row("rpn_cls_logits_fpn2", "rpn_class_raw", CONV),
        Row("rpn_bbox_pred_fpn2", "rpn_bbox_pred", RPN_DELTAS),
        Row("conv_rpn", "rpn_conv_shared", CONV),
        Row("rpn_cls_logits", "rpn_class_raw", CONV),
        Row("rpn_bbox_pred", "rpn_bbox_pred", RPN_DELTAS),
        Row("head_conv{index}", "mrcnn_class_xconv{index}", CONV),
        Row("head_conv{index}_gn", "mrcnn_class_xbn{index}", SCALE),
        Row("fc6", "mrcnn_class_conv1", FIRST_FC),
        Row("fc7", "mrcnn_class_conv2", FC),
        Row("cls_score", "mrcnn_class_logits", DENSE),
        Row("bbox_pred", "mrcnn_bbox_fc", dense(_class_deltas)),
        Row("_[mask]_fcn{index}", "mrcnn_mask_conv{index}", CONV),
        Row("_[mask]_fcn{index}_gn", "mrcnn_mask_bn{index}", SCALE),
        Row("_mask_fcn{index}", "mrcnn_mask_conv{index}", CONV),
        Row("_mask_fcn{index}_gn", "mrcnn_mask_bn{index}", SCALE),
        Row("conv5_mask", "mrcnn_mask_deconv", DECONV),
        Row("mask_fcn_logits", "mrcnn_mask", CONV),
    ),
)


def _classifier(scale: str, bias: str, mean: str, variance: str) -> Format:
    """ImageNet networks whose batch norm still has its statistics, by the endings of its four arrays."""
    return Format(
        name=FORMAT.name,
        sign=rf"res(_conv1|\d_\d+_branch2a)_bn{mean}$",
        endings={**CAFFE2, "gamma": scale, "beta": bias, "moving_mean": mean, "moving_variance": variance},
        bgr=True,
        ignored=_IGNORED,
        zeros=_ZEROS,
        rows=(
            Row("conv1", "conv1", {"kernel": CONV["kernel"]}),
            Row("res_conv1_bn", "bn_conv1", BATCH_NORM),
            Row("res{stage}_{block}_branch{branch}", "res{stage}{block}_branch{branch}", {"kernel": CONV["kernel"]}),
            Row("res{stage}_{block}_branch{branch}_bn", "bn{stage}{block}_branch{branch}", BATCH_NORM),
        ),
    )


# The two ways that detectron2's own reader of such files knows.
CLASSIFIERS = (_classifier("_gamma", "_beta", "_running_mean", "_running_var"), _classifier("_s", "_b", "_rm", "_riv"))
