"""Matterport's numpy target utilities under one name: to look at targets, and for code that uses them.

Training itself builds its targets inside the graph.
"""

from __future__ import annotations

from kmrcnn.data.generator import data_generator
from kmrcnn.data.head_targets import build_detection_targets
from kmrcnn.data.random_rois import generate_random_rois
from kmrcnn.data.rpn_targets import build_rpn_targets

__all__ = ["build_detection_targets", "build_rpn_targets", "data_generator", "generate_random_rois"]
