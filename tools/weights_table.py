"""Write the tables of docs/weights.md from the catalogue of published weight files.

    python tools/weights_table.py            # rewrites the part between the markers; a test fails if it is out of date
"""

from __future__ import annotations

import itertools
from pathlib import Path

from kmrcnn.importers import catalogue
from kmrcnn.importers.catalogue import WeightFile

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "weights.md"
BEGIN, END = "<!-- begin of the tables: tools/weights_table.py writes them -->", "<!-- end of the tables -->"


def tables() -> str:
    """One Markdown table for the detectors and one for the classifiers of each system."""
    groups = itertools.groupby(catalogue.files().values(), key=lambda entry: (entry.system, entry.kind == "backbone"))
    return "\n".join(_table(list(entries)) for _, entries in groups)


def _table(entries: list[WeightFile]) -> str:
    first = entries[0]
    title = f"### {first.system}" + (": ImageNet classifiers" if first.kind == "backbone" else "")
    facts = [f"`PRESET = \"{first.preset}\"`", f"licence {first.licence or 'not stated'}", f"[source]({first.source})"]
    score = "top-1" if first.kind == "backbone" else "box AP | mask AP"
    shared = f" {first.note[0].upper()}{first.note[1:]}." if _shared_note(entries) else ""
    head = [f"{title}\n", " · ".join(facts) + "  ", f"Input in training: {first.preprocessing}.{shared}\n",
            f"| name | backbone | {score} | checked by | |", "|---|---|" + "---|" * (score.count("|") + 3)]
    return "\n".join([*head, *(_row(entry, first, bool(shared)) for entry in entries)]) + "\n"


def _shared_note(entries: list[WeightFile]) -> bool:
    return bool(entries[0].note) and {entry.note for entry in entries} == {entries[0].note}


def _row(entry: WeightFile, first: WeightFile, noted: bool) -> str:
    link = f"[{entry.name}]({entry.url})" if entry.url else entry.name
    scores = [entry.top1] if entry.kind == "backbone" else [entry.box_ap, entry.mask_ap]
    checks = [f"{kind} {digits[:8]}…" for kind, digits in (("sha256", entry.sha256), ("md5", entry.md5)) if digits]
    checks += [f"{entry.size / 1e6:.0f} MB"] if entry.size else []
    notes = ["boxes only"] * (entry.kind == "boxes") + [entry.note] * (bool(entry.note) and not noted)
    notes += ["no public link"] * (entry.url is None)
    notes += [f"on {entry.measured_on}"] * (entry.measured_on != first.measured_on and entry.measured_on is not None)
    notes += [entry.preprocessing] * (entry.preprocessing != first.preprocessing)
    cells = [link, _backbone(entry), *("" if score is None else f"{score:.1f}" for score in scores),
             ", ".join(checks), "; ".join(notes)]
    return f"| {' | '.join(cells)} |"


def _backbone(entry: WeightFile) -> str:
    """The backbone with what is unusual about the network."""
    values = entry.config
    extras = ["C4"] * ("NECK" in values and values["NECK"] is None)
    extras += ["GN"] * (values.get("NORM") == "gn") + ["BN in neck and heads"] * (values.get("FPN_NORM") == "bn")
    extras += ["4 convolutions in the box head"] * (values.get("BOX_HEAD_CONVS") == 4)
    return ", ".join([values["BACKBONE"], *extras])


def updated(text: str) -> str:
    """The document with today's tables."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n\n{tables()}\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    DOCUMENT.write_text(updated(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
