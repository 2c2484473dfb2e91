"""Files of Detectron.pytorch (roytseng-tw) and what grew from it, such as the GIoU detectors.

Batch norm is folded into scale and bias. Trained on BGR images. With C4 the mask head repeats the box head's stage 5.
The heads' convolutions are numbered 0, 2, 4, 6 in their lists, or 0, 3, 6, 9 with group norm between them: two tables.
"""

from __future__ import annotations

from dataclasses import replace

from kmrcnn.importers.maps import Format, Row
from kmrcnn.importers.transforms import BOX_DELTAS, CONV, DECONV, DENSE, FC, FIRST_FC, RPN_DELTAS, SCALE


def _stages(prefix: str) -> tuple[Row, ...]:
    block = prefix + "res{stage}.{block}."
    names = "{stage}{block}_branch"
    return (
        Row(block + "conv{conv}", f"res{names}" + "{conv}", CONV),
        Row(block + "bn{conv}", f"bn{names}" + "{conv}", SCALE, folded=True),
        Row(block + "gn{conv}", f"bn{names}" + "{conv}", SCALE),
        Row(block + "downsample.0", f"res{names}1", CONV),
        Row(block + "downsample.1", f"bn{names}1", SCALE, folded=True),
    )


def _body(prefix: str) -> tuple[Row, ...]:
    return (
        Row(f"{prefix}res1.conv1", "conv1", CONV),
        Row(f"{prefix}res1.bn1", "bn_conv1", SCALE, folded=True),
        Row(f"{prefix}res1.gn1", "bn_conv1", SCALE),
        *_stages(prefix),
    )


_FORMAT = Format(
    name="detectron_pytorch_file",
    sign=r"Conv_Body\.",
    bgr=True,
    group_norm=r"\.gn\d\.",
    rows=(
        *_body("Conv_Body.conv_body."),
        *_body("Conv_Body."),
        *_stages("Box_Head."),
        *_stages("Mask_Head."),
        Row("Conv_Body.conv_top", "fpn_c5p5", CONV),
        Row("Conv_Body.conv_top.0", "fpn_c5p5", CONV),
        Row("Conv_Body.conv_top.1", "fpn_c5p5_norm", SCALE),
        Row("Conv_Body.topdown_lateral_modules.{lateral}.conv_lateral", "fpn_c{lateral}p{lateral}", CONV),
        Row("Conv_Body.topdown_lateral_modules.{lateral}.conv_lateral.0", "fpn_c{lateral}p{lateral}", CONV),
        Row("Conv_Body.topdown_lateral_modules.{lateral}.conv_lateral.1", "fpn_c{lateral}p{lateral}_norm", SCALE),
        Row("Conv_Body.posthoc_modules.{coarse}", "fpn_p{coarse}", CONV),
        Row("Conv_Body.posthoc_modules.{coarse}.0", "fpn_p{coarse}", CONV),
        Row("Conv_Body.posthoc_modules.{coarse}.1", "fpn_p{coarse}_norm", SCALE),
        Row("RPN.FPN_RPN_conv", "rpn_conv_shared", CONV),
        Row("RPN.FPN_RPN_cls_score", "rpn_class_raw", CONV),
        Row("RPN.FPN_RPN_bbox_pred", "rpn_bbox_pred", RPN_DELTAS),
        Row("RPN.RPN_conv", "rpn_conv_shared", CONV),
        Row("RPN.RPN_cls_score", "rpn_class_raw", CONV),
        Row("RPN.RPN_bbox_pred", "rpn_bbox_pred", RPN_DELTAS),
        Row("Box_Head.fc1", "mrcnn_class_conv1", FIRST_FC),
        Row("Box_Head.fc2", "mrcnn_class_conv2", FC),
        Row("Box_Head.fc", "mrcnn_class_conv1", FIRST_FC),
        Row("Box_Outs.cls_score", "mrcnn_class_logits", DENSE),
        Row("Box_Outs.bbox_pred", "mrcnn_bbox_fc", BOX_DELTAS),
        Row("Mask_Head.upconv", "mrcnn_mask_deconv", DECONV),
        Row("Mask_Head.upconv5", "mrcnn_mask_deconv", DECONV),
        Row("Mask_Outs.classify", "mrcnn_mask", CONV),
    ),
)

_PLAIN = (
    Row("Box_Head.convs.{even}", "mrcnn_class_xconv{even}", CONV),
    Row("Mask_Head.conv_fcn.{even}", "mrcnn_mask_conv{even}", CONV),
)
_NORMALISED = (
    Row("Box_Head.convs.{third}", "mrcnn_class_xconv{third}", CONV),
    Row("Box_Head.convs.{third_norm}", "mrcnn_class_xbn{third_norm}", SCALE),
    Row("Mask_Head.conv_fcn.{third}", "mrcnn_mask_conv{third}", CONV),
    Row("Mask_Head.conv_fcn.{third_norm}", "mrcnn_mask_bn{third_norm}", SCALE),
)
FORMATS = (
    replace(_FORMAT, sign=r"Box_Head\.convs\.1\.|Mask_Head\.conv_fcn\.1\.", rows=(*_FORMAT.rows, *_NORMALISED)),
    replace(_FORMAT, rows=(*_FORMAT.rows, *_PLAIN)),
)
