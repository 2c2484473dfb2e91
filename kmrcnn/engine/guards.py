"""What the loop watches for: steps that were not finite, no positives, too little memory."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence

logger = logging.getLogger("kmrcnn.engine")

PATIENCE = 200  # steps without a positive until one message says so
_SCALE_SEARCH = 15  # halvings from the first loss scale, 2**15, to 1: not a fault of the data

_ADVICE = ("Lower the learning rate, or let it rise over the first steps; lower GRADIENT_CLIP_NORM; look at the images "
           "named in the log (boxes without area, masks of another size); in float16 take PRECISION='bfloat16'.")
_NO_POSITIVES = {
    "anchor": (("rpn_bbox_loss",), "RPN_ANCHOR_SCALES should be the sides of objects in pixels of the resized image "
               "(IMAGE_MIN_DIM, IMAGE_MAX_DIM), RPN_ANCHOR_RATIOS their shapes"),
    "ROI": (("mrcnn_bbox_loss", "mrcnn_mask_loss"), "are there objects in the training images, with class ids from 1 "
            "on? From scratch APPEND_GT_TO_ROIS=True helps, or a lower ROI_POSITIVE_IOU"),
}
_MEMORY_WORDS = ("resource_exhausted", "out of memory", "can't allocate memory", "not enough memory")
_MEMORY_ADVICE = ("Lower IMAGES_PER_GPU (and raise GRADIENT_ACCUMULATION, to keep the batch), IMAGE_MAX_DIM or "
                  "TRAIN_ROIS_PER_IMAGE, or set PRECISION='bfloat16'.")


class TrainingDiverged(RuntimeError):
    """Too many steps in a row were not finite."""


class Guard:
    """Reads what each step reports about itself.

    A step of a guarded `Execution` leaves the weights alone if its loss or gradients are not finite, and says so.

    Args:
        limit: steps in a row that may be skipped until training stops.
        scaled: losses are scaled, so that steps are also skipped while the scale is looked for.

    Attributes:
        skipped: steps skipped so far.
    """

    def __init__(self, limit: int = 10, scaled: bool = False):
        self.skipped, self._row = 0, 0
        self._limit = limit + (_SCALE_SEARCH if scaled else 0)
        self._without = dict.fromkeys(_NO_POSITIVES, 0)

    def check(self, step: int, scalars: Mapping[str, float], image_ids: Sequence[int] = (),
              updated: bool = True) -> dict[str, float]:
        """One step's scalars as they enter the epoch's means.

        Args:
            step: its number, counted from 0 over the whole run.
            scalars: losses, and "skipped" and "gradient_norm" of a guarded step.
            image_ids: of its batch.
            updated: whether it ended with an update. Others have no verdict of their own: what they report beside
                their losses says nothing.

        Returns:
            The losses, the gradient norm, and "skipped", whose mean is the share of such updates; of a step that was
            skipped only the last.

        Raises:
            TrainingDiverged: the limit is reached.
        """
        losses = {name: value for name, value in scalars.items() if name not in ("skipped", "gradient_norm")}
        reports = {name: scalars[name] for name in ("gradient_norm", "skipped") if name in scalars}
        if not updated:
            if reports and not all(map(math.isfinite, losses.values())):
                self._log("is not finite, so the update it is part of will be skipped", step, losses, image_ids)
                return {}
            self._look_for_positives(step, losses)
            return losses
        if reports.get("skipped"):
            self._count(step, losses, reports.pop("gradient_norm", None), image_ids)
            return reports
        self._row = 0
        self._look_for_positives(step, losses)
        return losses | reports

    def _count(self, step: int, losses: Mapping[str, float], norm: float | None, image_ids: Sequence[int]) -> None:
        self.skipped += 1
        self._row += 1
        values = losses if norm is None else {**losses, "gradient_norm": norm}
        self._log("is skipped, its loss or gradients are not finite", step, values, image_ids)
        if self._row >= self._limit:
            raise TrainingDiverged(f"The last {self._row} steps, up to number {step}, were not finite and changed "
                                   f"nothing (MAX_SKIPPED_STEPS). The last checkpoint is good. {_ADVICE}")

    @staticmethod
    def _log(what: str, step: int, values: Mapping[str, float], image_ids: Sequence[int]) -> None:
        parts = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        logger.warning("Step %d %s: %s. Image ids (places in dataset.image_info): %s", step, what, parts,
                       ", ".join(map(str, image_ids)) or "unknown")

    def _look_for_positives(self, step: int, losses: Mapping[str, float]) -> None:
        for kind, (names, advice) in _NO_POSITIVES.items():
            values = [losses[name] for name in names if name in losses]
            if not values or any(values):
                self._without[kind] = 0
                continue
            self._without[kind] += 1
            if self._without[kind] == PATIENCE:
                logger.warning("No %s was positive in the last %d steps (up to number %d): %s.", kind, PATIENCE, step,
                               advice)
                self._without[kind] = -math.inf  # once is enough


def explain_memory(error: BaseException) -> str | None:
    """What to do about an error that says that memory is full; None for other errors."""
    text = str(error).lower()
    out = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    if not out and not any(word in text for word in _MEMORY_WORDS):
        return None
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"Out of memory in a training step. {_MEMORY_ADVICE} ({first})"
