"""Pure tensor functions in `keras.ops`: boxes, anchors, IoU, NMS, matching, sampling, ROIAlign and masks.

They know nothing of a Config or a layer. Importing this package does not import Keras, so that data
workers can use the anchors without paying for a backend.
"""

from __future__ import annotations

from kmrcnn.ops.anchors import generate_anchors, generate_pyramid_anchors, pyramid_shapes
from kmrcnn.ops.boxes import box_area, clip_boxes, decode_boxes, denorm_boxes, encode_boxes, norm_boxes
from kmrcnn.ops.focal import sigmoid_focal_loss
from kmrcnn.ops.iou import box_iou
from kmrcnn.ops.mask_loss import mask_loss
from kmrcnn.ops.masks import crop_masks, paste_masks
from kmrcnn.ops.matching import match_boxes
from kmrcnn.ops.nms import batched_nms, nms
from kmrcnn.ops.proposals import proposal_steps, propose
from kmrcnn.ops.rle import paste_masks_rle
from kmrcnn.ops.roi_align import crop_and_resize, multilevel_roi_align, roi_align
from kmrcnn.ops.roi_targets import roi_targets
from kmrcnn.ops.rpn_targets import rpn_targets
from kmrcnn.ops.sampling import hash_int32, sample_indices, sample_mask
from kmrcnn.ops.soft_nms import soft_nms

__all__ = [
    "batched_nms", "box_area", "box_iou", "clip_boxes", "crop_and_resize", "crop_masks", "decode_boxes",
    "denorm_boxes", "encode_boxes", "generate_anchors", "generate_pyramid_anchors", "hash_int32", "mask_loss",
    "match_boxes", "multilevel_roi_align", "nms", "norm_boxes", "paste_masks", "paste_masks_rle", "proposal_steps",
    "propose", "pyramid_shapes", "roi_align", "roi_targets", "rpn_targets", "sample_indices", "sample_mask",
    "sigmoid_focal_loss", "soft_nms",
]
