"""Histograms of a dataset as PNG files: classes, sizes, shapes, counts and anchors."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kmrcnn.doctor.split import Split
from kmrcnn.figures import Picture, as_written

_COLOURS = ("#3b6ea5", "#d98032", "#4f9a5b", "#a7506b", "#7a68a6", "#8a7f4a")
_MOST_CLASSES = 120
_SMALL, _LARGE = 32.0, 96.0  # COCO's limits of "small" and "large" objects, pixels


def draw_charts(splits: Sequence[Split], folder: str | os.PathLike) -> list[tuple[str, str]]:
    """Write the charts into a folder; returns (title, file name) of each. Without objects only image sizes."""
    charts = [("Image sizes", "image_sizes.png", _image_sizes)]
    if any(split.objects() for split in splits):
        charts = [("Objects of each class", "classes.png", _classes),
                  ("Object sizes", "object_sizes.png", _object_sizes),
                  ("Width / height of objects", "ratios.png", _ratios),
                  ("Objects in an image", "counts.png", _counts),
                  ("Where objects are", "places.png", _places), *charts]
    for title, name, draw in charts:
        draw(splits, title, Path(folder) / name)
    return [(title, name) for title, name, _ in charts]


def _classes(splits: Sequence[Split], title: str, path: Path) -> None:
    counts = [split.class_counts() for split in splits]
    names = sorted({name for own in counts for name in own}, key=lambda name: -sum(own.get(name, 0) for own in counts))
    if len(names) > _MOST_CLASSES:
        names = [*names[: _MOST_CLASSES // 2], *names[-_MOST_CLASSES // 2 :]]
        title += f": the {_MOST_CLASSES // 2} most frequent and as many of the rarest"
    picture = Picture((9, max(2.0, 0.8 + 0.22 * len(names))), save_path=path)
    axes, rows, thick = picture.ax, np.arange(len(names)), 0.8 / len(splits)
    for place, (split, own) in enumerate(zip(splits, counts, strict=True)):
        axes.barh(rows + (place - (len(splits) - 1) / 2) * thick, [own.get(name, 0) for name in names], thick,
                  color=_colour(place), label=as_written(split.name))
    # Logarithmic, from one half: a class of one object has a bar, a class of none has not.
    _logarithmic(axes)
    axes.set_xlim(left=0.5)
    axes.set_yticks(rows, [as_written(name if len(name) < 28 else name[:26] + "...") for name in names], fontsize=8)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlabel("objects")
    _finish(picture, title)


def _object_sizes(splits: Sequence[Split], title: str, path: Path) -> None:
    picture = Picture((9, 3.6), save_path=path)
    sizes = [np.sqrt((split.boxes()[:, 2:] - split.boxes()[:, :2]).prod(axis=1)) for split in splits]
    _histogram(picture.ax, splits, sizes, "square root of the box's area, pixels of the image")
    low, high = picture.ax.get_xlim()
    for limit, text in ((_SMALL, "small < 32"), (_LARGE, "large > 96")):
        if not low < limit < high:
            continue
        picture.ax.axvline(limit, color="black", linewidth=0.8, linestyle=":")
        picture.ax.text(limit, 0.98, f" {text}", transform=picture.ax.get_xaxis_transform(), fontsize=8, va="top")
    _finish(picture, title)


def _ratios(splits: Sequence[Split], title: str, path: Path) -> None:
    picture = Picture((9, 3.6), save_path=path)
    sides = [split.boxes()[:, 2:] - split.boxes()[:, :2] for split in splits]
    _histogram(picture.ax, splits, [own[:, 1] / own[:, 0] for own in sides], "width / height of the box")
    _finish(picture, title)


def _histogram(axes: Any, splits: Sequence[Split], values: Sequence[np.ndarray], label: str) -> None:
    """Shares over logarithmic bins, so that splits of different sizes can be compared."""
    together = np.concatenate(values)
    low, high = together.min(), together.max()
    bins = np.geomspace(low * 0.98, high * 1.02, 41)
    for place, (split, own) in enumerate(zip(splits, values, strict=True)):
        if len(own):
            axes.hist(own, bins, weights=np.full(len(own), 100 / len(own)), histtype="stepfilled", alpha=0.45,
                      color=_colour(place), edgecolor=_colour(place), label=f"{as_written(split.name)} ({len(own)})")
    _logarithmic(axes)
    axes.set_xlabel(label)
    axes.set_ylabel("% of the objects")


def _counts(splits: Sequence[Split], title: str, path: Path) -> None:
    picture = Picture((9, 3.6), save_path=path)
    counts = [split.objects_per_image() for split in splits]
    most = max(int(own.max(initial=0)) for own in counts)
    bins = np.arange(0, most + 2, max(1, -(-most // 60))) - 0.5
    for place, (split, own) in enumerate(zip(splits, counts, strict=True)):
        if len(own):
            picture.ax.hist(own, [*bins, most + 1], weights=np.full(len(own), 100 / len(own)), histtype="stepfilled",
                            alpha=0.45, color=_colour(place), edgecolor=_colour(place),
                            label=f"{as_written(split.name)}, up to {own.max()}")
    picture.ax.set_xlabel("objects")
    picture.ax.set_ylabel("% of the images")
    _finish(picture, title)


def _image_sizes(splits: Sequence[Split], title: str, path: Path) -> None:
    picture = Picture((9, 4.2), save_path=path)
    for place, split in enumerate(splits):
        sizes, numbers = np.unique(split.sizes(), axis=0, return_counts=True)
        picture.ax.scatter(sizes[:, 1], sizes[:, 0], 12 + 200 * numbers / max(numbers.max(initial=1), 1), alpha=0.5,
                           color=_colour(place), edgecolor="none", label=as_written(split.name))
    picture.ax.set_xlabel("width, pixels (larger dots: more images)")
    picture.ax.set_ylabel("height, pixels")
    tallest, widest = np.max([split.sizes().max(axis=0, initial=1) for split in splits], axis=0)
    picture.ax.set_xlim(0, 1.08 * widest)
    picture.ax.set_ylim(0, 1.08 * tallest)
    _finish(picture, title)


def _places(splits: Sequence[Split], title: str, path: Path) -> None:
    """Centres of the boxes in the image, each image stretched to a square: edges left empty show a bias."""
    picture = Picture((3.4 * len(splits) + 0.6, 3.6), save_path=path, cols=len(splits))
    for split, axes in zip(splits, picture.axes[0], strict=True):
        boxes, objects = split.boxes(), split.objects()
        sizes = split.sizes()[[item.image for item in objects]] if objects else np.ones((0, 2))
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2 / np.maximum(sizes, 1)
        grid, _, _ = np.histogram2d(centres[:, 0], centres[:, 1], bins=24, range=[[0, 1], [0, 1]])
        axes.imshow(grid, extent=(0, 1, 1, 0), cmap="viridis")
        axes.set_title(as_written(split.name), fontsize=10)
        axes.set_xticks([])
        axes.set_yticks([])
    picture.figure.suptitle(title, fontsize=12)
    picture.figure.tight_layout()
    picture.finish()


def _logarithmic(axes: Any) -> None:
    """The x axis, with readable numbers."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())


def _colour(place: int) -> str:
    return _COLOURS[place % len(_COLOURS)]


def _finish(picture: Picture, title: str) -> None:
    picture.ax.set_title(title, fontsize=12)
    if picture.ax.get_legend_handles_labels()[0]:
        picture.ax.legend(fontsize=8, framealpha=0.8)
    for side in ("top", "right"):
        picture.ax.spines[side].set_visible(False)
    picture.figure.tight_layout()
    picture.finish()
