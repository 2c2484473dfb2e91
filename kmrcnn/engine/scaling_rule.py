"""The linear scaling rule (Goyal et al. 2017): k times the batch, k times the learning rate, 1 / k of the updates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kmrcnn.config import Config


@dataclass(frozen=True)
class Recipe:
    """Numbers of a training recipe that depend on the images of an update.

    Args:
        images: of an update: the batch, times the batches whose gradients are accumulated.
        rate: the learning rate.
        steps, total, warmup: LR_STEPS, LR_TOTAL_STEPS and WARMUP_STEPS.
    """

    images: int
    rate: float
    steps: tuple[float, ...] = ()
    total: float | None = None
    warmup: float = 0

    def scaled(self, images: int, lengths: bool = True) -> Recipe:
        """The same recipe for other batches.

        Args:
            lengths: they are in updates, and rounded to whole ones; False: they stay.
        """
        factor = images / self.images

        def length(updates: float) -> float:
            return int(updates / factor + 0.5) if lengths else updates

        return Recipe(images, self.rate * factor, tuple(length(step) for step in self.steps),
                      None if self.total is None else length(self.total), length(self.warmup))


def scaled_recipe(config: Config, rate: float) -> tuple[Recipe, Recipe]:
    """A Config's recipe as it is written, for REFERENCE_BATCH_SIZE images, and scaled to the images of its updates."""
    images = config.BATCH_SIZE * config.GRADIENT_ACCUMULATION
    written = Recipe(config.REFERENCE_BATCH_SIZE or images, rate, tuple(config.LR_STEPS), config.LR_TOTAL_STEPS,
                     config.WARMUP_STEPS)
    return written, written.scaled(images, config.LR_UNIT == "step")


def table(recipes: Sequence[Recipe]) -> str:
    """Recipes side by side, for people."""
    rows = [["images an update", *(str(recipe.images) for recipe in recipes)],
            ["learning rate", *(f"{recipe.rate:g}" for recipe in recipes)],
            ["LR_STEPS", *(", ".join(f"{step:.12g}" for step in recipe.steps) or "-" for recipe in recipes)],
            ["LR_TOTAL_STEPS", *("-" if r.total is None else f"{r.total:.12g}" for r in recipes)],
            ["WARMUP_STEPS", *(f"{recipe.warmup:.12g}" for recipe in recipes)]]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
                     for row in rows)
