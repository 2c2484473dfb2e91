"""ProposalLayer: from RPN scores and deltas to the boxes the heads look at."""

from __future__ import annotations

import keras
from keras import KerasTensor, ops

from kmrcnn.layers.frames import BoxLayer
from kmrcnn.ops import batched_nms, clip_boxes, decode_boxes


@keras.saving.register_keras_serializable("kmrcnn")
class ProposalLayer(BoxLayer):
    """Keep the best anchors, refine, clip and thin them by NMS.

    Matterport's rule limits and thins the anchors of all levels together; the other systems' (`per_level`) each level
    for itself, and then keeps the best of all.

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
        _, _, boxes, keep = self.steps(probs, deltas, anchors, frame)
        kept = ops.take_along_axis(boxes, ops.maximum(keep, 0)[..., None], axis=1)
        return ops.where((keep >= 0)[..., None], kept, ops.zeros_like(kept))

    def steps(self, probs, deltas, anchors, frame):
        """What each step leaves of the K anchors that enter NMS: the best `pre_nms_limit`, or those of every level.

        Returns:
            Best score first, with `per_level` level by level: the anchors (B, K, 4), these with their deltas applied,
            these clipped; and the rows of K that NMS keeps, best first, (B, proposal_count) int32, padded with -1.
        """
        probs, deltas = ops.stop_gradient(probs), ops.stop_gradient(deltas)
        levels = list(anchors) if isinstance(anchors, list | tuple) else [anchors]
        if not self.per_level and len(levels) > 1:
            levels = [ops.concatenate(levels, axis=0)]
        steps, kept_scores, start, before = [], [], 0, 0
        for level in levels:
            part = slice(start, start + level.shape[0])
            *boxes, scores, keep = self._level(probs[:, part, 1], deltas[:, part], level, frame)
            kept = ops.take_along_axis(scores, ops.maximum(keep, 0), axis=1)
            kept_scores.append(ops.where(keep >= 0, kept, ops.full_like(kept, -float("inf"))))
            steps.append((*boxes, ops.where(keep >= 0, keep + before, keep)))
            start, before = start + level.shape[0], before + scores.shape[1]
        *boxes, keep = steps[0] if len(steps) == 1 else [ops.concatenate(s, axis=1) for s in zip(*steps, strict=True)]
        return *boxes, self._best(keep, kept_scores)

    def _level(self, scores, deltas, anchors, frame):
        """Anchors, refined and clipped boxes (B, K, 4), scores (B, K), and the rows of K that NMS keeps."""
        count = min(self.pre_nms_limit, anchors.shape[0])
        scores = ops.where(ops.isnan(scores), -ops.ones_like(scores), scores)
        # A stable sort, so that equal scores keep the anchors' order on every backend; torch's top_k does not.
        index = ops.cast(ops.argsort(-scores, axis=1)[:, :count], "int32")
        scores = ops.take_along_axis(scores, index, axis=1)
        deltas = ops.take_along_axis(deltas, index[..., None], axis=1)
        anchors = ops.take(anchors, index, axis=0)
        refined = decode_boxes(anchors, deltas, self._weights(), self.max_log_scale)
        clipped = clip_boxes(refined, frame[:, None, :], self.inclusive)
        dropped = scores < 0.0
        if self.min_size:
            dropped = ops.logical_or(dropped, ops.min(clipped[..., 2:] - clipped[..., :2], axis=-1) < self.min_size)
        scores = ops.where(dropped, ops.full_like(scores, -float("inf")), scores)
        limit = min(self.proposal_count, count) if self.per_level else self.proposal_count
        return anchors, refined, clipped, scores, batched_nms(clipped, scores, self.nms_threshold, limit)

    def _best(self, keep, scores: list):
        """The first `proposal_count` of what the levels keep, (B, sum of all) with scores a level, by score."""
        if len(scores) > 1:
            order = ops.argsort(-ops.concatenate(scores, axis=1), axis=1)
            keep = ops.take_along_axis(keep, ops.cast(order, "int32"), axis=1)[:, : self.proposal_count]
        missing = self.proposal_count - keep.shape[1]
        return ops.pad(keep, [[0, 0], [0, missing]], constant_values=-1) if missing > 0 else keep

    def _weights(self) -> tuple[float, ...]:
        return tuple(1.0 / s for s in self.bbox_std_dev)

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
