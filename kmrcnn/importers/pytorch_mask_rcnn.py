"""Files of multimodallearning/pytorch-mask-rcnn (`mask_rcnn_coco.pth`): Matterport's weights under torch's names.

Deltas, channels and class order are Matterport's already.
"""

from __future__ import annotations

from kmrcnn.importers.maps import Format, Row
from kmrcnn.importers.transforms import BATCH_NORM, CONV, DECONV, DENSE

FORMAT = Format(
    name="pytorch_mask_rcnn_file",
    sign=r"fpn\.C\d\.|fpn\.P\d_conv",
    ignored=(r".*\.num_batches_tracked",),
    rows=(
        Row("fpn.C1.0", "conv1", CONV),
        Row("fpn.C1.1", "bn_conv1", BATCH_NORM),
        Row("fpn.C{stage}.{block}.conv{conv}", "res{stage}{block}_branch{conv}", CONV),
        Row("fpn.C{stage}.{block}.bn{conv}", "bn{stage}{block}_branch{conv}", BATCH_NORM),
        Row("fpn.C{stage}.{block}.downsample.0", "res{stage}{block}_branch1", CONV),
        Row("fpn.C{stage}.{block}.downsample.1", "bn{stage}{block}_branch1", BATCH_NORM),
        Row("fpn.P{pyramid}_conv1", "fpn_c{pyramid}p{pyramid}", CONV),
        Row("fpn.P{pyramid}_conv2.1", "fpn_p{pyramid}", CONV),
        Row("rpn.conv_shared", "rpn_conv_shared", CONV),
        Row("rpn.conv_class", "rpn_class_raw", CONV),
        Row("rpn.conv_bbox", "rpn_bbox_pred", CONV),
        Row("classifier.conv{index}", "mrcnn_class_conv{index}", CONV),
        Row("classifier.bn{index}", "mrcnn_class_bn{index}", BATCH_NORM),
        Row("classifier.linear_class", "mrcnn_class_logits", DENSE),
        Row("classifier.linear_bbox", "mrcnn_bbox_fc", DENSE),
        Row("mask.conv5", "mrcnn_mask", CONV),
        Row("mask.conv{index}", "mrcnn_mask_conv{index}", CONV),
        Row("mask.bn{index}", "mrcnn_mask_bn{index}", BATCH_NORM),
        Row("mask.deconv", "mrcnn_mask_deconv", DECONV),
    ),
)
