"""The two losses of the region proposal network (Ren et al. 2015, eq. 1)."""

from __future__ import annotations

import keras
from keras import ops

from kmrcnn.losses.base import BoxLoss, LossLayer, cross_entropy


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
        sampled = _drawn_rows(match)
        return self.ratio(ops.sum(loss, axis=1), sampled, match.shape[1], sampled)


@keras.saving.register_keras_serializable("kmrcnn")
class RPNBoxLoss(BoxLoss):
    """Smooth L1 over the drawn positive anchors.

    Call: (deltas (B, A, 4), index (B, S) int32, match (B, S) int32, target (B, S, 4)).
    """

    def call(self, deltas, index, match, target):
        drawn = ops.take_along_axis(deltas, index[..., None], axis=1)
        return self.box_ratio(drawn, target, match > 0, _drawn_rows(match))


def _drawn_rows(match):
    """How many rows of match (B, S) hold an anchor, (B,) int32."""
    return ops.sum(ops.cast(ops.not_equal(match, 0), "int32"), axis=1)
