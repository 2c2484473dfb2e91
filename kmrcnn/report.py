"""A run's plots: PNG files and one HTML page with them, made from what the run's folder holds.

    python -m kmrcnn.report logs/shapes20260131T0930

Files read: log.csv, metrics.jsonl and evaluation.json; of what is missing there are no plots.
"""

from __future__ import annotations

import argparse
import base64
import csv
import html
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kmrcnn.engine.json_lines import read_json_lines
from kmrcnn.engine.logs import EPOCHS_FILE, METRICS_FILE
from kmrcnn.figures import Picture, as_written
from kmrcnn.validation import EVALUATION_FILE

REPORT_FILE, PLOT_FOLDER = "report.html", "plots"
_MOST_CLASSES = 30  # whose names fit into a plot
_KINDS = {"bbox": "boxes", "segm": "masks"}


class History(NamedTuple):
    """What a run's folder holds.

    Attributes:
        epochs: rows of log.csv, numbers by name, None where there is none.
        steps: the lines of steps in metrics.jsonl.
        lengths: steps of an epoch by the number of a finished one; a run may go on with others.
        evaluation: evaluation.json; None without.
    """

    epochs: list[dict[str, float | None]]
    steps: list[dict[str, Any]]
    lengths: dict[int, float]
    evaluation: dict[str, Any] | None


def write_report(folder: str | os.PathLike) -> str:
    """Draw the plots of a run, and write report.html; returns its path.

    Args:
        folder: of the run's logs.
    """
    folder = Path(folder)
    history = read_history(folder)
    (folder / PLOT_FOLDER).mkdir(exist_ok=True)
    plots = {name: folder / PLOT_FOLDER / f"{name}.png" for name in _PLOTS}
    drawn = [name for name, draw in _PLOTS.items() if draw(history, plots[name])]
    page = _page(folder.name, history, [(name, plots[name].read_bytes()) for name in drawn])
    (folder / REPORT_FILE).write_text(page, encoding="utf-8")
    return str(folder / REPORT_FILE)


def read_history(folder: Path) -> History:
    """Read the logs of a run's folder."""
    epochs, evaluation = [], None
    if (folder / EPOCHS_FILE).exists():
        with open(folder / EPOCHS_FILE, newline="") as file:
            epochs = [{name: float(value) if value else None for name, value in row.items()}
                      for row in csv.DictReader(file)]
    lines = read_json_lines(folder / METRICS_FILE)
    steps = [row for row in lines if row["kind"] == "step"]
    lengths = {row["epoch"]: row["step"] / row["epoch"] for row in lines if row["kind"] == "epoch"}
    if (folder / EVALUATION_FILE).exists():
        evaluation = json.loads((folder / EVALUATION_FILE).read_text(encoding="utf-8"))
    return History(epochs, steps, lengths, evaluation)


# ---- plots: each returns whether there was something to draw ----


def draw_losses(history: History, path: Path) -> bool:
    """Every part of the loss over the epochs: means in training, in validation, and medians of 20 steps."""
    names = [name for name in (history.epochs or [{}])[-1] if name.endswith("loss") and not name.startswith("val_")]
    if not names:
        return False
    picture = _grid(path, len(names), 3)
    for axes, name in zip(picture.axes.flat, names, strict=False):
        _line(axes, _of_steps(history, name), "training, median of 20", color="0.75", linewidth=1)
        _line(axes, _of_epochs(history, name), "training", color="tab:blue", marker=".")
        _line(axes, _of_epochs(history, f"val_{name}"), "validation", color="tab:orange", marker=".")
        axes.set_title(name)
        _epochs_below(axes)
        axes.set_ylim(bottom=0)
    picture.axes.flat[0].legend()
    return _finish(picture, len(names))


def draw_rates(history: History, path: Path) -> bool:
    """Learning rate, speed, memory and gradient norm over the steps."""
    names = [name for name in ("learning_rate", "images_per_second", "gradient_norm", "memory_mib",
                               "device_memory_mib") if any(name in row for row in history.steps)]
    if not names:
        return False
    picture = _grid(path, len(names), 2)
    for axes, name in zip(picture.axes.flat, names, strict=False):
        _line(axes, [(row["step"], row.get(name)) for row in history.steps], name, color="tab:blue")
        axes.set_title(name.replace("_", " ").replace("mib", "(MiB)"))
        axes.set_xlabel("step")
        axes.set_ylim(bottom=0)
    return _finish(picture, len(names))


def draw_ap(history: History, path: Path) -> bool:
    """AP over the epochs."""
    names = [name for name in (history.epochs or [{}])[-1] if name.startswith(("val_bbox_AP", "val_segm_AP"))]
    if not names:
        return False
    picture = Picture((9, 4.5), save_path=path)
    for name in names:
        _, kind, value = name.split("_")
        _line(picture.ax, _of_epochs(history, name), f"{_KINDS[kind]} {value}", marker=".",
              color="tab:green" if kind == "segm" else "tab:purple",
              linestyle={"AP": "-", "AP50": "--"}.get(value, ":"))
    picture.ax.set(ylim=(0, 1), title="COCO AP on the validation images")
    _epochs_below(picture.ax)
    picture.ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return _finish(picture)


def draw_curves(history: History, path: Path) -> bool:
    """Precision over recall: each class at IoU 0.5 thin, the mean over classes thick."""
    if not _has_classes(history):
        return False
    types = history.evaluation["types"]
    picture = _grid(path, len(types), 2, size=(6, 5))
    recall = np.linspace(0, 1, 101)
    for axes, (kind, found) in zip(picture.axes.flat, types.items(), strict=False):
        few = len(found["classes"]) <= 10
        for row, curve in zip(found["classes"], found["precision"]["0.50"], strict=True):
            label = f"{as_written(row['name'])}, IoU 0.50" if few else None
            axes.plot(recall, curve, linewidth=1, alpha=0.7, label=label)
        for name, style in (("0.50", "-"), ("0.75", "--"), ("mean", ":")):
            label = "all, IoU 0.50 to 0.95" if name == "mean" else f"all, IoU {name}"
            axes.plot(recall, np.mean(found["precision"][name], axis=0), f"k{style}", linewidth=2, label=label)
        axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision", title=_KINDS[kind])
        axes.legend(fontsize=8, loc="lower left")
    return _finish(picture, len(types))


def draw_classes(history: History, path: Path) -> bool:
    """AP of each class, best first."""
    if not _has_classes(history):
        return False
    types = history.evaluation["types"]
    main = list(types)[-1]
    order = sorted(range(len(types[main]["classes"])), key=lambda place: types[main]["classes"][place]["AP"])
    rows = [types[main]["classes"][place] for place in order]  # names may be equal: classes of two sources
    picture = Picture((9, 1.5 + 0.32 * len(rows) * len(types) / 1.6), save_path=path)
    height = 0.8 / len(types)
    for place, kind in enumerate(types):
        values = [types[kind]["classes"][row]["AP"] for row in order]
        bars = picture.ax.barh(np.arange(len(rows)) + place * height, values, height,
                               color="tab:green" if kind == "segm" else "tab:purple", label=_KINDS[kind])
        picture.ax.bar_label(bars, fmt="%.3f", fontsize=8, padding=2)
    picture.ax.set_yticks(np.arange(len(rows)) + height * (len(types) - 1) / 2,
                          [f"{as_written(row['name'])} ({row['instances']})" for row in rows])
    picture.ax.set(xlim=(0, 1.08), xlabel="AP", title="AP of each class (instances)")
    picture.ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return _finish(picture)


def draw_confusion(history: History, path: Path) -> bool:
    """The confusion matrix: shares of each row, with counts where there is room."""
    if not history.evaluation:
        return False
    confusion = history.evaluation["confusion"]
    matrix, names = np.array(confusion["matrix"]), [*map(as_written, confusion["classes"]), "background"]
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    side = min(max(4.5, 0.6 * len(names)), 14)
    picture = Picture((side + 1.5, side), save_path=path)
    image = picture.ax.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    picture.figure.colorbar(image, ax=picture.ax, label="share of the row", fraction=0.046)
    if len(names) <= _MOST_CLASSES:
        for (row, column), count in np.ndenumerate(matrix):
            if count:
                picture.ax.text(column, row, count, ha="center", va="center", fontsize=8,
                                color="white" if shares[row, column] > 0.5 else "black")
    picture.ax.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
    picture.ax.set_yticks(range(len(names)), names, fontsize=8)
    picture.ax.set(xlabel="found", ylabel="true", title=f"Detections of score {confusion['score']} and more, IoU 0.5")
    return _finish(picture)


_PLOTS: dict[str, Callable[[History, Path], bool]] = {
    "losses": draw_losses, "ap": draw_ap, "precision_recall": draw_curves, "classes": draw_classes,
    "confusion": draw_confusion, "rates": draw_rates,
}


def _has_classes(history: History) -> bool:
    return bool(history.evaluation) and any(found["classes"] for found in history.evaluation["types"].values())


def _of_epochs(history: History, name: str) -> list[tuple[float, float | None]]:
    return [(row["epoch"], row.get(name)) for row in history.epochs]


def _of_steps(history: History, name: str) -> list[tuple[float, float | None]]:
    """Over epochs; none before the end of the first."""
    if not history.lengths:
        return []
    last = history.lengths[max(history.lengths)]
    return [(row["step"] / history.lengths.get(row["epoch"], last), row.get(name)) for row in history.steps]


def _line(axes: Any, points: Sequence[tuple[float, float | None]], label: str, **style) -> None:
    points = [point for point in points if point[1] is not None]
    if points:
        axes.plot(*zip(*points, strict=True), label=label, **style)


def _epochs_below(axes: Any) -> None:
    """Whole numbers of epochs on the axis below."""
    axes.set_xlabel("epoch")
    axes.xaxis.get_major_locator().set_params(integer=True)


def _grid(path: Path, count: int, columns: int, size: tuple[float, float] = (4.6, 3.2)) -> Picture:
    columns = min(columns, count)
    rows = -(-count // columns)
    return Picture((size[0] * columns, size[1] * rows), save_path=path, rows=rows, cols=columns)


def _finish(picture: Picture, used: int | None = None) -> bool:
    for axes in list(picture.axes.flat)[used:] if used else ():
        axes.axis("off")
    picture.figure.tight_layout()
    picture.finish()
    return True


# ---- the page ----

_TITLES = {"losses": "Losses", "ap": "AP while training", "precision_recall": "Precision and recall",
           "classes": "Classes", "confusion": "Confusion matrix", "rates": "Learning rate, speed, memory"}
_STYLE = ("body{font:15px sans-serif;max-width:75em;margin:2em auto;padding:0 1em}img{max-width:100%}"
          "table{border-collapse:collapse}td,th{border:1px solid #ccc;padding:.2em .6em;text-align:right}")


def _page(name: str, history: History, plots: Sequence[tuple[str, bytes]]) -> str:
    parts = [f"<h1>{html.escape(name)}</h1>"]
    if history.epochs:
        parts.append(f"<p>{len(history.epochs)} epochs. The last one:</p>" + _table(history.epochs[-1]))
    if history.evaluation:
        parts.append(f"<p>Evaluated behind epoch {history.evaluation['epoch']} on {history.evaluation['images']} "
                     "validation images.</p>" + _stats_table(history.evaluation["types"]))
    for plot, data in plots:
        parts.append(f'<h2>{_TITLES[plot]}</h2><img alt="{_TITLES[plot]}" '
                     f'src="data:image/png;base64,{base64.b64encode(data).decode()}">')
    return (f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(name)}</title>'
            f"<style>{_STYLE}</style>{''.join(parts)}</html>\n")


def _table(row: Mapping[str, float | None]) -> str:
    """Training's and validation's values beside each other."""
    names = [name for name in row if not name.startswith("val_") and name != "epoch"]
    lines = [f"<tr><th>{html.escape(name)}<td>{_number(row[name])}<td>{_number(row.get(f'val_{name}'))}"
             for name in names]
    return f"<table><tr><th><th>training<th>validation{''.join(lines)}</table>"


def _stats_table(types: Mapping[str, Any]) -> str:
    names = list(next(iter(types.values()))["stats"])
    head = "".join(f"<th>{name}" for name in names)
    lines = [f"<tr><th>{_KINDS[kind]}" + "".join(f"<td>{_number(found['stats'][name])}" for name in names)
             for kind, found in types.items()]
    return f"<table><tr><th>{head}{''.join(lines)}</table>"


def _number(value: float | None) -> str:
    return "" if value is None or value == -1 else f"{value:.4g}"


def main(argv: Sequence[str] | None = None) -> None:
    """The command line: `python -m kmrcnn.report FOLDER`."""
    parser = argparse.ArgumentParser(prog="python -m kmrcnn.report", description="Draw a run's plots and its page.")
    parser.add_argument("folder", type=Path, help="of a run, such as logs/shapes20260131T0930")
    folder = parser.parse_args(argv).folder
    if not any((folder / name).is_file() for name in (EPOCHS_FILE, METRICS_FILE, EVALUATION_FILE)):
        parser.error(f"{folder}: found none of {EPOCHS_FILE}, {METRICS_FILE} and {EVALUATION_FILE}, expected a run's "
                     "folder")
    try:
        print(write_report(folder))
    except OSError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
