"""The two losses of the region proposal network (Ren et al. 2015, eq. 1)."""

from __future__ import annotations

import keras
from keras import ops

from kmrcnn.losses.base import LossLayer, cross_entropy, smooth_l1


@keras.saving.register_keras_serializable("kmrcnn")
class RPNClassLoss(LossLayer):
    """Cross entropy of background and foreground over the drawn anchors.

    Call: (logits (B, A, 2), index (B, S) int32, match (B, S) int32: 1, -1, 0 unused).
    """

    def call(self, logits, index, match):
        drawn = ops.take_along_axis(logits, index[..., None], axis=1)
        loss = cross_entropy(drawn, ops.cast(match > 0, "int32"))
        used = ops.not_equal(match, 0)
        loss = ops.where(used, loss, ops.zeros_like(loss))
        return self.ratio(ops.sum(loss, axis=1), ops.sum(ops.cast(used, "int32"), axis=1), match.shape[1])


@keras.saving.register_keras_serializable("kmrcnn")
class RPNBoxLoss(LossLayer):
    """Smooth L1 over the drawn positive anchors; the denominator counts coordinates with "count".

    Call: (deltas (B, A, 4), index (B, S) int32, match (B, S) int32, target (B, S, 4)).
    """

    def call(self, deltas, index, match, target):
        drawn = ops.take_along_axis(deltas, index[..., None], axis=1)
        positive = match > 0
        error = ops.where(positive[..., None], drawn - target, ops.zeros_like(drawn))
        count = 4 * ops.sum(ops.cast(positive, "int32"), axis=1)
        return self.ratio(ops.sum(smooth_l1(error), axis=(1, 2)), count, match.shape[1])
