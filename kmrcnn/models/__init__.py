"""Whole networks, assembled from a Config."""

from kmrcnn.models.mask_rcnn import LOSS_NAMES, build_inference_model, build_training_model

__all__ = ["LOSS_NAMES", "build_inference_model", "build_training_model"]
