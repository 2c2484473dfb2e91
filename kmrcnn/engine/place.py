"""A place in a run, as its logs see it."""

from __future__ import annotations

from typing import NamedTuple


class Place(NamedTuple):
    """How far a run has come.

    Attributes:
        step: steps made since the run's start.
        epochs: epochs that are finished, validation included.
        epoch_step: steps made by the end of these.
    """

    step: int
    epochs: int
    epoch_step: int
