"""An examination as an HTML page with pictures beside it; no scripts, nothing from the network."""

from __future__ import annotations

import html
import json
import os
from collections.abc import Sequence
from pathlib import Path

from kmrcnn.doctor.charts import draw_charts
from kmrcnn.doctor.examine import Examination
from kmrcnn.doctor.findings import CHECKS, Finding, by_check
from kmrcnn.doctor.report import is_defect, json_report, overview, plain, text_report, verdict
from kmrcnn.doctor.snapshots import draw_snapshots

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 1100px; padding: 0 1em; color: #222 }
h1 { margin-bottom: 0 } h2 { margin-top: 2em; border-bottom: 1px solid #ccc } h3 { margin: 1.4em 0 .3em }
table { border-collapse: collapse; width: 100% } td, th { padding: .25em .6em; text-align: left; vertical-align: top }
tr:nth-child(even) { background: #f5f5f5 } td { overflow-wrap: anywhere } code { overflow-wrap: normal }
.defect { color: #b3261e } .note { color: #5b6b7a } .verdict { font-size: 120% }
.pictures { display: flex; flex-wrap: wrap; gap: 12px } figure { margin: 0 }
figcaption { font-size: 12px; width: 260px }
.charts img { max-width: 100% } code { background: #eee; padding: 0 .25em }
"""
_ODD = "backslashreplace"  # json can hold halves of characters, which no encoding has
_LISTED = 200  # findings of a check on the page; the JSON has all


def write_reports(examination: Examination, folder: str | os.PathLike) -> Path:
    """Write report.txt, report.json, report.html and pictures/ into a folder; returns the page's path."""
    folder = Path(folder)
    pictures = folder / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    (folder / "report.txt").write_text(text_report(examination) + "\n", encoding="utf-8", errors=_ODD)
    with open(folder / "report.json", "w", encoding="utf-8") as file:
        json.dump(json_report(examination), file, indent=1, default=plain)
    charts = draw_charts(examination.splits, pictures)
    page = html_page(examination, charts, draw_snapshots(examination, pictures))
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8", errors=_ODD)
    return path


def html_page(examination: Examination, charts: Sequence[tuple[str, str]], snapshots: dict[Finding, str]) -> str:
    """The page.

    charts: (title, file name in pictures/). snapshots: file names of the findings that have a picture.
    """
    defects = [_check(check, findings, snapshots) for check, findings in by_check(examination.findings)
               if is_defect(check)]
    notes = [_check(check, findings, snapshots) for check, findings in by_check(examination.findings)
             if not is_defect(check)]
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><title>Dataset report</title>", f"<style>{_STYLE}</style>",
        "<h1>Dataset report</h1>",
        f"<p class='verdict {'defect' if examination.defects else ''}'>{_text(verdict(examination))}</p>",
        *(f"<p>{_text(overview(split))}</p>" for split in examination.splits),
        "<h2>Defects</h2>", *(defects or ["<p>None.</p>"]),
        "<h2>Settings</h2>", _settings(examination),
        "<h2>Charts</h2><div class=charts>",
        *(f"<p><img src='pictures/{name}' alt='{_text(title)}'></p>" for title, name in charts), "</div>",
        "<h2>Notes</h2>", *(notes or ["<p>None.</p>"]), "</html>",
    ]
    return "\n".join(parts)


def _text(value: object) -> str:
    return html.escape(str(value), quote=True)


def _check(check: str, findings: Sequence[Finding], snapshots: dict[Finding, str]) -> str:
    severity, meaning = CHECKS[check]
    rows = [f"<tr><td>{_text(finding.where())}<td>{_text(finding.text)}" for finding in findings[:_LISTED]]
    if len(findings) > _LISTED:
        rows.append(f"<tr><td colspan=2>and {len(findings) - _LISTED} more in report.json")
    drawn = [f"<figure><img src='pictures/{snapshots[finding]}' alt=''><figcaption>{_text(finding.where())}"
             "</figcaption></figure>" for finding in findings if finding in snapshots]
    pictures = f"<div class=pictures>{''.join(drawn)}</div>" if drawn else ""
    return (f"<h3 class={severity}>{check}: {len(findings)}</h3><p>{_text(meaning)}</p>{pictures}"
            f"<table>{''.join(rows)}</table>")


def _settings(examination: Examination) -> str:
    rows = [f"<tr><td><code>{hint.key}</code><td>{_text(hint.own)}<td>"
            f"{f'<b>{_text(hint.suggested)}</b>' if hint.differs else 'same'}<td>{_text(hint.reason)}"
            for hint in examination.hints]
    return f"<table><tr><th>key<th>configured<th>suggested<th>why{''.join(rows)}</table>"
