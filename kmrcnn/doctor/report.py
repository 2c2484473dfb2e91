"""An examination as text and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np

from kmrcnn.doctor.examine import Examination
from kmrcnn.doctor.findings import CHECKS, DEFECT, by_check
from kmrcnn.doctor.split import Split


def text_report(examination: Examination, shown: int = 20) -> str:
    """For reading; `shown` findings of each check, the others are counted."""
    return "\n".join(_lines(examination, shown))


def _lines(examination: Examination, shown: int) -> Iterator[str]:
    for split in examination.splits:
        yield overview(split)
    yield ""
    for check, findings in by_check(examination.findings):
        severity, meaning = CHECKS[check]
        yield f"{severity.upper()} {check}: {len(findings)} x {meaning}"
        for finding in findings[:shown]:
            yield f"    {finding.where()}" + (f": {finding.text}" if finding.text else "")
        if len(findings) > shown:
            yield f"    and {len(findings) - shown} more"
    yield from ["", "Settings (training split: " + examination.splits[0].name + ")"]
    for hint in examination.hints:
        arrow = f"{hint.own} -> {hint.suggested}" if hint.differs else f"{hint.own}"
        yield f"    {hint.key}: {arrow}"
        yield f"        {hint.reason}"
    yield from ["", verdict(examination)]


def overview(split: Split) -> str:
    """One line: how much there is."""
    objects = split.boxes()
    crowds = len(split.instances) - len(objects)
    sizes = np.sqrt((objects[:, 2:] - objects[:, :2]).prod(axis=1))
    text = (f"{split.name}: {len(split.images)} images, {len(objects)} objects, {crowds} crowds, "
            f"{len(split.categories)} classes")
    if len(sizes):
        low, middle, high = np.quantile(sizes, (0.1, 0.5, 0.9))
        text += f"; object sizes {low:.0f} / {middle:.0f} / {high:.0f} pixels (10 % / median / 90 %)"
    return text


def verdict(examination: Examination) -> str:
    """The last line."""
    defects = len(examination.defects)
    kinds = len({finding.check for finding in examination.defects})
    notes = len(examination.findings) - defects
    found = f"{defects} defects of {kinds} kinds" if defects else "no defects"
    return f"{found}, {notes} notes"


def json_report(examination: Examination) -> dict[str, Any]:
    """Everything, of plain types; keys are documented in docs/dataset_doctor.md."""
    return {
        "defects": len(examination.defects),
        "checks": {check: {"severity": CHECKS[check][0], "count": len(findings)}
                   for check, findings in by_check(examination.findings)},
        "findings": [{"severity": CHECKS[finding.check][0], **finding.as_dict()} for finding in examination.findings],
        "splits": [_split(split) for split in examination.splits],
        "settings": [{**asdict(hint), "differs": hint.differs} for hint in examination.hints],
        "anchors": None if examination.anchors is None else asdict(examination.anchors),
    }


def _split(split: Split) -> dict[str, Any]:
    counts = split.objects_per_image()
    return {"name": split.name, "images": len(split.images), "objects": int(counts.sum()),
            "crowds": len(split.instances) - int(counts.sum()), "most_objects": int(counts.max(initial=0)),
            "classes": split.class_counts()}


def plain(value: Any) -> Any:
    """For `json.dump(default=...)`: numpy values and whatever ids a dataset uses."""
    return value.tolist() if isinstance(value, (np.generic, np.ndarray)) else str(value)


def is_defect(check: str) -> bool:
    """Whether findings of a check count for the exit code."""
    return CHECKS[check][0] == DEFECT
