"""Files of liangheming/maskrcnn: `{"ema": weights, "map": ..., "epoch": ...}`.

Boxes are class-agnostic; masks have no background. Trained on RGB images.
"""

from __future__ import annotations

from kmrcnn.importers.maps import Format, Row
from kmrcnn.importers.torchvision import body
from kmrcnn.importers.transforms import (
    BOX_DELTAS,
    CONV,
    DECONV,
    DENSE,
    FC,
    FIRST_FC,
    RPN_DELTAS,
    add_background,
    conv,
)

FORMAT = Format(
    name="liangheming_file",
    sign=r"fpn\.(latent|out)_layers\.|roi_head\.(box|mask)_head\.|backbone\.(conv1|layer\d\.\d+\.conv\d)\.",
    ignored=(r".*\.num_batches_tracked", r"backbone\.fc\.(weight|bias)"),
    rows=(
        *body("backbone."),
        Row("fpn.latent_layers.{level0}", "fpn_c{level0}p{level0}", CONV),
        Row("fpn.out_layers.{level0}", "fpn_p{level0}", CONV),
        Row("rpn.rpn_head.conv", "rpn_conv_shared", CONV),
        Row("rpn.rpn_head.cls", "rpn_class_raw", CONV),
        Row("rpn.rpn_head.box", "rpn_bbox_pred", RPN_DELTAS),
        Row("roi_head.box_head.fc6", "mrcnn_class_conv1", FIRST_FC),
        Row("roi_head.box_head.fc7", "mrcnn_class_conv2", FC),
        Row("roi_head.box_head.cls", "mrcnn_class_logits", DENSE),
        Row("roi_head.box_head.bbox", "mrcnn_bbox_fc", BOX_DELTAS),
        Row("roi_head.mask_head.conv_list.8", "mrcnn_mask_deconv", DECONV),
        Row("roi_head.mask_head.conv_list.10", "mrcnn_mask", conv(add_background)),
        Row("roi_head.mask_head.conv_list.{even}", "mrcnn_mask_conv{even}", CONV),
    ),
)
