"""The examination: every split read and checked, compared with the others, and what it says about settings."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kmrcnn.config import Config
from kmrcnn.data.dataset import Dataset
from kmrcnn.doctor.advice import Hint, advise
from kmrcnn.doctor.anchors import AnchorAdvice
from kmrcnn.doctor.classes import check_classes, check_twins
from kmrcnn.doctor.coco_entries import read_coco
from kmrcnn.doctor.copies import find_copies
from kmrcnn.doctor.custom import read_dataset
from kmrcnn.doctor.files import Look, check_files, default_workers, mean_colour
from kmrcnn.doctor.findings import Finding, kept
from kmrcnn.doctor.split import Split

# Where a split is read from: a prepared Dataset, or (annotation file, image folder) of COCO's format.
Source = Dataset | tuple[str | Path, str | Path]


@dataclass
class Examination:
    """All that was found.

    Attributes:
        splits: as read; the first one is taken for the one to train on.
        findings: in the order of the checks of each split, then those between splits.
        hints: settings; `anchors` has the numbers behind the anchors.
    """

    splits: list[Split]
    findings: list[Finding]
    hints: list[Hint] = field(default_factory=list)
    anchors: AnchorAdvice | None = None

    @property
    def defects(self) -> list[Finding]:
        """The findings that are no notes."""
        return [finding for finding in self.findings if finding.is_defect]


def examine(sources: Mapping[str, Source], config: Any = None, masks: bool = True, images: bool = True,
            ignore: Collection[str] = (), workers: int | None = None) -> Examination:
    """Examine the splits of a dataset.

    Args:
        sources: {name: where it is read from}; the first one is the one to train on.
        config: settings to compare with; Matterport's defaults without it.
        masks: make the masks, which takes most of the time; without it only what outlines and boxes say.
        images: open the image files.
        ignore: checks (keys of CHECKS) whose findings are dropped.
        workers: threads that read images.

    Raises:
        ValueError: a file is not COCO json, no split, or an unknown check in `ignore`.

    Example:
        result = examine({"train": ("cells/train.json", "cells/train"), "val": my_dataset})
        for finding in result.defects:
            print(finding.check, finding.where(), finding.text)
    """
    if not sources:
        raise ValueError("no split to examine")
    kept((), ignore)  # an unknown check is a mistake to hear of before the work
    splits: list[Split] = []
    looks: list[Sequence[Look | None]] = []
    findings: list[Finding] = []
    for name, source in sources.items():
        split, own, found = _read(name, source, masks, images, workers or default_workers())
        splits.append(split)
        looks.append(own)
        findings += [*found, *check_twins(split, exact=not isinstance(source, Dataset))]
    if masks or not any(isinstance(source, Dataset) for source in sources.values()):
        findings += check_classes(splits)
    findings += find_copies(splits, looks)
    config = Config() if config is None else config
    hints, anchors = advise(splits[0], config, mean_colour(looks[0]))
    return Examination(splits, kept(findings, ignore), hints, anchors)


def _read(name: str, source: Source, masks: bool, images: bool,
          workers: int) -> tuple[Split, Sequence[Look | None], list[Finding]]:
    if isinstance(source, Dataset):
        return read_dataset(name, source, masks, images)
    split, findings = read_coco(name, *source, masks=masks)
    if not images:
        return split, [None] * len(split.images), findings
    looks, found = check_files(split, workers)
    return split, looks, [*findings, *found]
