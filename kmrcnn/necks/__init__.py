"""Networks between backbone and heads."""

from kmrcnn.necks.fpn import fpn

__all__ = ["fpn"]
