"""Network parts that answer: where could objects be, what are they, which pixels are theirs."""

from kmrcnn.heads.box import box_head, box_predictor
from kmrcnn.heads.mask import mask_head
from kmrcnn.heads.res5 import build_res5_model, res5_box_head, res5_features
from kmrcnn.heads.rpn import build_rpn_model, rpn_graph, rpn_head

__all__ = [
    "box_head",
    "box_predictor",
    "build_res5_model",
    "build_rpn_model",
    "mask_head",
    "res5_box_head",
    "res5_features",
    "rpn_graph",
    "rpn_head",
]
