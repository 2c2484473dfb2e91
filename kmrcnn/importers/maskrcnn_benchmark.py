"""Files of facebookresearch/maskrcnn-benchmark. Trained on BGR images.

With C4 the mask head repeats the box head's stage 5. The anchors that files hold are made anew here. The box head's
convolutions are numbered 0, 2, 4, 6 in their list, or 0, 3, 6, 9 with group norm between them: two tables.
"""

from __future__ import annotations

from dataclasses import replace

from kmrcnn.importers.maps import Format, Row
from kmrcnn.importers.torchvision import stages
from kmrcnn.importers.transforms import BATCH_NORM, BOX_DELTAS, CONV, DECONV, DENSE, FC, FIRST_FC, RPN_DELTAS, SCALE

_BOX, _MASK = "roi_heads.box.feature_extractor.", "roi_heads.mask.feature_extractor."

_FORMAT = Format(
    name="maskrcnn_benchmark_file",
    sign=r"backbone\.body\.stem\.|backbone\.fpn\.fpn_inner|roi_heads\.(box|mask)\.(feature_extractor|predictor)\.",
    bgr=True,
    ignored=(r".*\.num_batches_tracked", r"rpn\.anchor_generator\.cell_anchors\.\d+"),
    rows=(
        Row("backbone.body.stem.conv1", "conv1", CONV),
        Row("backbone.body.stem.bn1", "bn_conv1", BATCH_NORM),
        *stages("backbone.body."),
        *stages(f"{_BOX}head."),
        *stages(f"{_MASK}head."),
        Row("backbone.fpn.fpn_inner{level1}", "fpn_c{level1}p{level1}", CONV),
        Row("backbone.fpn.fpn_inner{level1}.0", "fpn_c{level1}p{level1}", CONV),
        Row("backbone.fpn.fpn_inner{level1}.1", "fpn_c{level1}p{level1}_norm", SCALE),
        Row("backbone.fpn.fpn_layer{level1}", "fpn_p{level1}", CONV),
        Row("backbone.fpn.fpn_layer{level1}.0", "fpn_p{level1}", CONV),
        Row("backbone.fpn.fpn_layer{level1}.1", "fpn_p{level1}_norm", SCALE),
        Row("rpn.head.conv", "rpn_conv_shared", CONV),
        Row("rpn.head.cls_logits", "rpn_class_raw", CONV),
        Row("rpn.head.bbox_pred", "rpn_bbox_pred", RPN_DELTAS),
        Row(f"{_BOX}fc6", "mrcnn_class_conv1", FIRST_FC),
        Row(f"{_BOX}fc6.0", "mrcnn_class_conv1", FIRST_FC),
        Row(f"{_BOX}fc6.1", "mrcnn_class_bn1", SCALE),
        Row(f"{_BOX}fc7", "mrcnn_class_conv2", FC),
        Row(f"{_BOX}fc7.0", "mrcnn_class_conv2", FC),
        Row(f"{_BOX}fc7.1", "mrcnn_class_bn2", SCALE),
        Row("roi_heads.box.predictor.cls_score", "mrcnn_class_logits", DENSE),
        Row("roi_heads.box.predictor.bbox_pred", "mrcnn_bbox_fc", BOX_DELTAS),
        Row(_MASK + "mask_fcn{index}", "mrcnn_mask_conv{index}", CONV),
        Row(_MASK + "mask_fcn{index}.0", "mrcnn_mask_conv{index}", CONV),
        Row(_MASK + "mask_fcn{index}.1", "mrcnn_mask_bn{index}", SCALE),
        Row("roi_heads.mask.predictor.conv5_mask", "mrcnn_mask_deconv", DECONV),
        Row("roi_heads.mask.predictor.mask_fcn_logits", "mrcnn_mask", CONV),
    ),
)

_PLAIN = (Row(_BOX + "xconvs.{even}", "mrcnn_class_xconv{even}", CONV),)
_NORMALISED = (
    Row(_BOX + "xconvs.{third}", "mrcnn_class_xconv{third}", CONV),
    Row(_BOX + "xconvs.{third_norm}", "mrcnn_class_xbn{third_norm}", SCALE),
)
FORMATS = (
    replace(_FORMAT, sign=r"roi_heads\.box\.feature_extractor\.xconvs\.1\.", rows=(*_FORMAT.rows, *_NORMALISED)),
    replace(_FORMAT, rows=(*_FORMAT.rows, *_PLAIN)),
)
