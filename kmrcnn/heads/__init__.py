"""Network parts that answer: where could objects be, what are they, which pixels are theirs."""

from kmrcnn.heads.box import box_head
from kmrcnn.heads.mask import mask_head
from kmrcnn.heads.rpn import build_rpn_model, rpn_graph, rpn_head

__all__ = ["box_head", "build_rpn_model", "mask_head", "rpn_graph", "rpn_head"]
