"""ProposalLayer: from RPN scores and deltas to the boxes the heads look at."""

from __future__ import annotations

import keras
from keras import KerasTensor, ops

from kmrcnn.layers.frames import BoxLayer
from kmrcnn.ops import batched_nms, clip_boxes, decode_boxes


@keras.saving.register_keras_serializable("kmrcnn")
class ProposalLayer(BoxLayer):
    """Keep the best anchors over all levels, refine, clip and thin them by NMS (Matterport's rule).

    Args:
        proposal_count: rows of the output.
        nms_threshold: a box whose IoU with a better one is above this is dropped.
        pre_nms_limit: anchors that enter NMS.
        bbox_std_dev: the RPN's deltas are multiplied by this.

    Call: (probs (B, A, 2) background/foreground, deltas (B, A, 4), anchors (A, 4), frame (B, 4) clip border)
        -> (B, proposal_count, 4) internal boxes, best first, zero-padded. No gradient flows through.
    """

    def __init__(self, proposal_count: int, nms_threshold: float, pre_nms_limit: int = 6000,
                 bbox_std_dev=(0.1, 0.1, 0.2, 0.2), **kwargs):
        super().__init__(**kwargs)
        self.proposal_count, self.nms_threshold, self.pre_nms_limit = proposal_count, nms_threshold, pre_nms_limit
        self.bbox_std_dev = tuple(float(s) for s in bbox_std_dev)

    def call(self, probs, deltas, anchors, frame):
        _, _, boxes, keep = self.steps(probs, deltas, anchors, frame)
        kept = ops.take_along_axis(boxes, ops.maximum(keep, 0)[..., None], axis=1)
        return ops.where((keep >= 0)[..., None], kept, ops.zeros_like(kept))

    def steps(self, probs, deltas, anchors, frame):
        """What each step leaves of the best K = `pre_nms_limit` anchors.

        Returns:
            Best score first: the anchors (B, K, 4), these with their deltas applied, these clipped; and the rows
            that NMS keeps, (B, proposal_count) int32, padded with -1.
        """
        probs, deltas = ops.stop_gradient(probs), ops.stop_gradient(deltas)
        count = min(self.pre_nms_limit, anchors.shape[0])
        scores = probs[..., 1]
        scores = ops.where(ops.isnan(scores), -ops.ones_like(scores), scores)
        # A stable sort, so that equal scores keep the anchors' order on every backend; torch's top_k does not.
        index = ops.cast(ops.argsort(-scores, axis=1)[:, :count], "int32")
        scores = ops.take_along_axis(scores, index, axis=1)
        scores = ops.where(scores < 0.0, -float("inf") * ops.ones_like(scores), scores)
        deltas = ops.take_along_axis(deltas, index[..., None], axis=1)
        anchors = ops.take(anchors, index, axis=0)
        refined = decode_boxes(anchors, deltas, weights=self._weights())
        clipped = clip_boxes(refined, frame[:, None, :])
        return anchors, refined, clipped, batched_nms(clipped, scores, self.nms_threshold, self.proposal_count)

    def _weights(self) -> tuple[float, ...]:
        return tuple(1.0 / s for s in self.bbox_std_dev)

    def compute_output_spec(self, probs, deltas, anchors, frame):
        return KerasTensor((probs.shape[0], self.proposal_count, 4), dtype="float32")

    def get_config(self) -> dict:
        return {**super().get_config(), "proposal_count": self.proposal_count, "nms_threshold": self.nms_threshold,
                "pre_nms_limit": self.pre_nms_limit, "bbox_std_dev": self.bbox_std_dev}


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
