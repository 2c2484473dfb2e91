"""The paper that `visualize` draws on: a figure that is shown, saved or returned as an image.

Saving and returning use a figure of their own and the Agg canvas, never pyplot, so that they work without a
display and from several threads at once.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

DPI = 100
# Saved pictures of one image have a longest side of at least this many pixels, so that text stays readable.
_SMALLEST_SIDE = 800
_TITLE_LINE = 0.35  # inches


class Picture:
    """A grid of matplotlib axes on a new figure, or the caller's `ax`.

    Args:
        size: (width, height) in inches.
        ax: draw here instead; then `finish` leaves showing and saving to the caller.
        save_path: file to write; its suffix picks the format.
        return_image: `finish` returns the picture as an array.
        full: one image that fills the whole figure, without margins.
    """

    def __init__(
        self,
        size: tuple[float, float],
        ax: Any = None,
        save_path: str | os.PathLike | None = None,
        return_image: bool = False,
        rows: int = 1,
        cols: int = 1,
        full: bool = False,
    ):
        self.save_path, self.return_image = save_path, return_image
        self.on_screen = ax is None and save_path is None and not return_image
        self.figure = ax.figure if ax is not None else self._new_figure(size)
        if ax is not None:
            self.axes = np.array([[ax]])
        elif full:
            self.axes = np.array([[self.figure.add_axes((0, 0, 1, 1))]])
        else:
            self.axes = self.figure.subplots(rows, cols, squeeze=False)
        self.owned = ax is None

    def _new_figure(self, size: tuple[float, float]) -> Any:
        if self.on_screen:
            import matplotlib.pyplot as plt

            return plt.figure(figsize=size)
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=size, dpi=DPI)
        FigureCanvasAgg(figure)
        return figure

    @classmethod
    def of_image(cls, image: np.ndarray, title: str, figsize: tuple[float, float], ax: Any = None,
                 save_path: str | os.PathLike | None = None, return_image: bool = False, margin: int = 0) -> Picture:
        """A picture of one image [H, W, 3], drawn already, with `margin` pixels of room around it."""
        height, width = image.shape[0] + 2 * margin, image.shape[1] + 2 * margin
        longest = max(height, width)
        inches = min(max(longest, _SMALLEST_SIDE) / DPI, max(figsize))
        top = _TITLE_LINE * (title.count("\n") + 1) if title else 0.0
        size = (max(inches * width / longest, 1.0), max(inches * height / longest, 1.0) + top)
        picture = cls(size, ax, save_path, return_image, full=True)
        axes = picture.ax
        if picture.owned:
            axes.set_position((0, 0, 1, 1 - top / size[1]))
        axes.set_xlim(-0.5 - margin, image.shape[1] - 0.5 + margin)
        axes.set_ylim(image.shape[0] - 0.5 + margin, -0.5 - margin)
        axes.axis("off")
        axes.set_title(as_written(title), fontsize=12)
        return picture

    @property
    def ax(self) -> Any:
        """The first axes."""
        return self.axes[0, 0]

    def finish(self) -> np.ndarray | None:
        """Show, save and return, as asked for. The image is uint8 [H, W, 3] RGB."""
        if not self.owned:
            return None
        if self.on_screen:
            return self._show()
        if self.save_path is not None:
            self.figure.savefig(self.save_path, dpi=DPI)
        if not self.return_image:
            return None
        self.figure.canvas.draw()
        return np.asarray(self.figure.canvas.buffer_rgba())[..., :3].copy()

    def _show(self) -> None:
        import matplotlib.pyplot as plt

        plt.show()
        if plt.get_backend().lower() == "agg":  # cannot be shown; an open figure would only take memory
            plt.close(self.figure)


def as_written(text: object) -> str:
    """A text for matplotlib, which takes what is between two dollars for a formula, and no halves of characters."""
    return str(text).encode("utf-8", "replace").decode().replace("$", r"\$")


def to_uint8(image: np.ndarray) -> np.ndarray:
    """Any image [H, W, C] or [H, W] in 0..255 -> a new uint8 [H, W, 3]: the first three channels, or one thrice."""
    image = image[..., None] if image.ndim == 2 else image
    rgb = image[..., :3] if image.shape[-1] > 2 else np.repeat(image[..., :1], 3, axis=-1)
    return np.clip(rgb, 0, 255).astype(np.uint8)


def draw_rectangle(axes: Any, box: np.ndarray, color: Any, style: str, width: float = 2, alpha: float = 1.0) -> None:
    """The outline of a box (4,) in pixels."""
    from matplotlib.patches import Rectangle

    y1, x1, y2, x2 = (float(value) for value in box[:4])
    # matplotlib puts the centre of pixel 0 at 0, its edge at -0.5.
    axes.add_patch(Rectangle((x1 - 0.5, y1 - 0.5), x2 - x1, y2 - y1, linewidth=width, alpha=alpha, linestyle=style,
                             edgecolor=color, facecolor="none"))


def draw_refined(axes: Any, box: np.ndarray | None, refined: np.ndarray, color: Any) -> None:
    """The refined box, and a line from the corner it came from."""
    from matplotlib.lines import Line2D

    draw_rectangle(axes, refined, color, "-")
    if box is not None:
        axes.add_line(Line2D([box[1] - 0.5, refined[1] - 0.5], [box[0] - 0.5, refined[0] - 0.5], color=color))


def draw_contour(axes: Any, mask: np.ndarray, color: Any) -> None:
    """The outlines of a mask [H, W]."""
    from matplotlib.patches import Polygon
    from skimage.measure import find_contours

    rows, cols = np.flatnonzero(np.any(mask, axis=1)), np.flatnonzero(np.any(mask, axis=0))
    if len(rows) == 0:
        return
    part = np.asarray(mask[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1], np.float32)
    # One pixel of padding closes the contours along the part's edges.
    for vertices in find_contours(np.pad(part, 1), 0.5):
        corners = vertices[:, ::-1] + (cols[0] - 1, rows[0] - 1)
        axes.add_patch(Polygon(corners, closed=True, facecolor="none", edgecolor=color))


def draw_labels(axes: Any, boxes: Sequence[np.ndarray], texts: Sequence[str | None], colors: Sequence[Any],
                size: int) -> None:
    """White text on a dark ground at the boxes' upper corners, moved so that it stays inside and apart.

    The axes' limits must be set. A label that would cover an earlier one moves down by its own height.
    """
    placed: list[tuple[float, float, float, float]] = []
    frame = axes.get_window_extent()
    pixel = axes.figure.dpi / 72  # of one point
    height = 1.45 * size * pixel
    for box, text, color in zip(boxes, texts, colors, strict=True):
        if not text:
            continue
        width = 0.66 * size * pixel * len(text)
        x, y = axes.transData.transform((float(box[1]), float(box[0])))  # display pixels, y upwards
        x = min(max(x, frame.x0 + 2), max(frame.x1 - width - 2, frame.x0 + 2))
        y = max(min(y, frame.y1 - 2), frame.y0 + height + 2)
        for _ in range(4):
            if not any(_overlap((x, y, width, height), other) for other in placed):
                break
            y = max(y - height, frame.y0 + height + 2)
        placed.append((x, y, width, height))
        where = axes.transData.inverted().transform((x, y))
        axes.text(*where, as_written(text), color="white", fontsize=size, ha="left", va="top",
                  bbox={"facecolor": "black", "alpha": 0.55, "edgecolor": color, "pad": 1})


def _overlap(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether two labels (left, top, width, height) share room."""
    return abs(one[0] + one[2] / 2 - other[0] - other[2] / 2) < (one[2] + other[2]) / 2 and (
        abs(one[1] - other[1]) < one[3] - 1
    )
