"""ProposalLayer: from RPN scores and deltas to the boxes the heads look at."""

from __future__ import annotations

import keras
from keras import KerasTensor

from kmrcnn.layers.frames import BoxLayer
from kmrcnn.ops import proposal_steps, propose


@keras.saving.register_keras_serializable("kmrcnn")
class ProposalLayer(BoxLayer):
    """Keep the best anchors, refine, clip and thin them by NMS.

    Matterport's rule limits and thins the anchors of all levels together; the other systems' (`per_level`) each level
    for itself, and then keeps the best of all. `kmrcnn.ops.propose` does it.

    Args:
        proposal_count: rows of the output.
        nms_threshold: a box whose IoU with a better one is above this is dropped.
        pre_nms_limit: anchors that enter NMS; with `per_level`, of each level.
        bbox_std_dev: the RPN's deltas are multiplied by this.
        per_level: see above; it needs the anchors as a list.
        min_size: boxes with a shorter side, after clipping, are dropped.
        max_log_scale: see `kmrcnn.ops.decode_boxes`.
        inclusive: see `kmrcnn.ops.clip_boxes`.

    Call: (probs (B, A, 2) background/foreground, deltas (B, A, 4), anchors (A, 4) or a list of (A_l, 4), frame (B, 4)
        clip border) -> (B, proposal_count, 4) internal boxes, best first, zero-padded. No gradient flows through.
    """

    def __init__(self, proposal_count: int, nms_threshold: float, pre_nms_limit: int = 6000,
                 bbox_std_dev=(0.1, 0.1, 0.2, 0.2), *, per_level: bool = False, min_size: float = 0.0,
                 max_log_scale: float | None = None, inclusive: bool = False, **kwargs):
        super().__init__(**kwargs)
        self.proposal_count, self.nms_threshold, self.pre_nms_limit = proposal_count, nms_threshold, pre_nms_limit
        self.bbox_std_dev = tuple(float(s) for s in bbox_std_dev)
        self.per_level, self.min_size, self.max_log_scale = per_level, min_size, max_log_scale
        self.inclusive = inclusive

    def call(self, probs, deltas, anchors, frame):
        return propose(probs, deltas, anchors, frame, **self._settings())

    def steps(self, probs, deltas, anchors, frame):
        """What each step leaves of the anchors, see `kmrcnn.ops.proposal_steps`."""
        return proposal_steps(probs, deltas, anchors, frame, **self._settings())

    def _settings(self) -> dict:
        return {"count": self.proposal_count, "nms_threshold": self.nms_threshold,
                "pre_nms_limit": self.pre_nms_limit, "weights": tuple(1.0 / s for s in self.bbox_std_dev),
                "per_level": self.per_level, "min_size": self.min_size, "max_log_scale": self.max_log_scale,
                "inclusive": self.inclusive}

    def compute_output_spec(self, probs, deltas, anchors, frame):
        return KerasTensor((probs.shape[0], self.proposal_count, 4), dtype="float32")

    def get_config(self) -> dict:
        return {**super().get_config(), "proposal_count": self.proposal_count, "nms_threshold": self.nms_threshold,
                "pre_nms_limit": self.pre_nms_limit, "bbox_std_dev": self.bbox_std_dev,
                "per_level": self.per_level, "min_size": self.min_size, "max_log_scale": self.max_log_scale,
                "inclusive": self.inclusive}


@keras.saving.register_keras_serializable("kmrcnn")
class ProposalSteps(ProposalLayer):
    """A `ProposalLayer` that returns what each of its `steps` leaves, for inspection."""

    def call(self, probs, deltas, anchors, frame):
        return self.steps(probs, deltas, anchors, frame)

    def compute_output_spec(self, probs, deltas, anchors, frame):
        batch = probs.shape[0]
        # One object each: Keras tells tensors apart by identity.
        boxes = (KerasTensor((batch, None, 4), dtype="float32") for _ in range(3))
        return *boxes, KerasTensor((batch, self.proposal_count), dtype="int32")
