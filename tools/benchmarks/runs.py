"""From the flags of a run to its comparisons, each of one batch size and precision, and from these to rows."""

from __future__ import annotations

import argparse
import gc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import keras

from kmrcnn.config import Config
from tools.benchmarks import UsageError
from tools.benchmarks.cases import Case
from tools.benchmarks.device import Device
from tools.benchmarks.report import with_ratios
from tools.benchmarks.timing import Contestant, Plan, compete


@dataclass(frozen=True)
class Run:
    """One comparison.

    Attributes:
        case: what all contestants have in common. images: where they come from.
        engines: of ours. steps: length of the run that "auto" is told. peers: names.
    """

    case: Case
    plan: Plan
    images: str
    engines: Sequence[str]
    peers: Sequence[str]
    steps: int | None

    def config(self) -> Config:
        """The settings."""
        return self.case.config()

    def rows(self, work: str, contestants: Sequence[Contestant], device: Device) -> list[dict[str, Any]]:
        """Let contestants compete; rows with what was measured and on what."""
        height, width = self.case.size
        common = {"work": work, "backend": keras.backend.backend(), "device": device.name, "batch": self.case.batch,
                  "size": f"{height}x{width}", "precision": self.case.precision, "images": self.images,
                  "layers": self.case.layers}
        rows = [{**common, **row} for row in compete(contestants, self.plan, device)]
        for row in rows:
            row["images_per_second"] = 1e3 * self.case.batch / row["ms"]
        return with_ratios(rows)


def groups(arguments: argparse.Namespace) -> Iterator[Run]:
    """The comparisons that the flags ask for, one after the other; what one held is released before the next.

    Raises:
        UsageError: a peer is asked for that cannot run here.
    """
    names, plan = _peers(arguments), Plan(arguments.repeat, arguments.warmup, arguments.calls)
    for precision in arguments.precision:
        for batch in arguments.batch:
            case = Case(batch, arguments.size, precision, arguments.layers, arguments.small, arguments.weights)
            yield Run(case, plan, arguments.images, arguments.engine, names, arguments.steps)
            gc.collect()


def _peers(arguments: argparse.Namespace) -> Sequence[str]:
    if arguments.peers == []:
        return ()
    found: Sequence[str] = ()
    if keras.backend.backend() == "torch":
        from tools.benchmarks import peers

        found = peers.available()
    missing = set(arguments.peers or ()) - set(found)
    if missing:
        raise UsageError(f"--peers {','.join(sorted(missing))}: not available with KERAS_BACKEND="
                         f"{keras.backend.backend()}, found {', '.join(found) or 'none'}")
    return found if arguments.peers is None else arguments.peers
