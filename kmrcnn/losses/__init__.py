"""The five losses, each returning per image a numerator and a denominator."""

from kmrcnn.losses.base import LossLayer, reduce_loss
from kmrcnn.losses.heads import HeadBoxLoss, HeadClassLoss, MaskLoss
from kmrcnn.losses.rpn import RPNBoxLoss, RPNClassLoss

__all__ = ["HeadBoxLoss", "HeadClassLoss", "LossLayer", "MaskLoss", "RPNBoxLoss", "RPNClassLoss", "reduce_loss"]
