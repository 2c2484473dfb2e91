"""Keras layers of the model; all take keyword arguments, none a Config."""

from kmrcnn.layers.conv import Conv2D, Conv2DTranspose
from kmrcnn.layers.detection import DetectionLayer
from kmrcnn.layers.detection_target import DetectionTargetLayer
from kmrcnn.layers.frames import (
    Anchors,
    BoxColumns,
    ImageFrame,
    InternalToNormalized,
    NormalizedToInternal,
    PixelsToInternal,
)
from kmrcnn.layers.norm import BatchNorm, FrozenBatchNorm, GroupNorm, Normalization, synchronize
from kmrcnn.layers.pooling import BilinearResize, MaxPooling2D, Upsampling2x
from kmrcnn.layers.proposal import ProposalLayer, ProposalSteps
from kmrcnn.layers.roi_align import FoldROIs, LeadingROIs, PyramidROIAlign, UnfoldROIs
from kmrcnn.layers.rpn_target import RPNTargetLayer

__all__ = [
    "Anchors",
    "BatchNorm",
    "BilinearResize",
    "BoxColumns",
    "Conv2D",
    "Conv2DTranspose",
    "DetectionLayer",
    "DetectionTargetLayer",
    "FoldROIs",
    "FrozenBatchNorm",
    "GroupNorm",
    "ImageFrame",
    "InternalToNormalized",
    "LeadingROIs",
    "MaxPooling2D",
    "Normalization",
    "NormalizedToInternal",
    "PixelsToInternal",
    "ProposalLayer",
    "ProposalSteps",
    "PyramidROIAlign",
    "RPNTargetLayer",
    "UnfoldROIs",
    "Upsampling2x",
    "synchronize",
]
