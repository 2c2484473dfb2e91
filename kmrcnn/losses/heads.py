"""The losses of the box and mask heads (He et al. 2017, section 3)."""

from __future__ import annotations

import keras
from keras import ops

from kmrcnn.losses.base import BoxLoss, LossLayer, cross_entropy
from kmrcnn.ops import mask_loss


@keras.saving.register_keras_serializable("kmrcnn")
class HeadClassLoss(LossLayer):
    """Softmax cross entropy of each ROI, left out where the predicted class is not one of the image's dataset.

    Args:
        compat: True applies the first image's active classes to the whole batch, as Matterport does.

    Call: (logits (B, T, C), class_ids (B, T) int32, weights (B, T), meta (B, 12 + C)).
    """

    def __init__(self, denominator: str = "count", compat: bool = False, **kwargs):
        super().__init__(denominator, **kwargs)
        self.compat = compat

    def call(self, logits, class_ids, weights, meta):
        active = meta[:, 12:]
        if self.compat:
            active = ops.zeros_like(active) + active[:1]
        predicted = ops.argmax(logits, axis=-1)
        counted = weights * ops.take_along_axis(active, predicted, axis=1)
        loss = cross_entropy(logits, class_ids) * counted
        return self.ratio(ops.sum(loss, axis=1), ops.sum(counted, axis=1), class_ids.shape[1],
                          ops.sum(weights, axis=1))

    def get_config(self) -> dict:
        return {**super().get_config(), "compat": self.compat}


@keras.saving.register_keras_serializable("kmrcnn")
class HeadBoxLoss(BoxLoss):
    """Smooth L1 on the true class's deltas of the positive ROIs.

    Call: (deltas (B, T, C, 4), or (B, T, 1, 4) of all classes alike, class_ids (B, T) int32, target (B, T, 4),
        weights (B, T): 1 for drawn rows, needed by "sampled" only).

    Raises:
        ValueError: "sampled" without weights.
    """

    def call(self, deltas, class_ids, target, weights=None):
        self._check(weights)
        if deltas.shape[2] == 1:
            chosen = deltas[:, :, 0]
        else:
            chosen = ops.take_along_axis(deltas, class_ids[..., None, None], axis=2)[:, :, 0]
        sampled = None if weights is None else ops.sum(weights, axis=1)
        return self.box_ratio(chosen, target, class_ids > 0, sampled)

    def _check(self, weights) -> None:
        if self.denominator == "sampled" and weights is None:
            raise ValueError("denominator 'sampled' needs the weights of the ROIs in the call")

    def compute_output_spec(self, deltas, class_ids, target, weights=None):
        self._check(weights)
        return super().compute_output_spec(deltas)


@keras.saving.register_keras_serializable("kmrcnn")
class MaskLoss(LossLayer):
    """Binary cross entropy of the true class's mask of the positive ROIs, from logits; a mean over pixels.

    "sampled" is "count" here: only positive ROIs have masks.

    Call: (logits (B, P, h, w, C), class_ids (B, T) int32 of which the first P rows may be positive,
        target (B, P, h, w) in [0, 1]).
    """

    def call(self, logits, class_ids, target):
        class_ids = class_ids[:, : target.shape[1]]
        loss = mask_loss(logits, class_ids, target)
        positive = class_ids > 0
        count = ops.sum(ops.cast(positive, "int32"), axis=1)
        return self.ratio(ops.sum(loss, axis=1), count, target.shape[1], count)
