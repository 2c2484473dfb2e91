"""Pictures of every stage: Matterport's visualize.

Each function shows its picture. With `save_path` it writes it to a file instead, with `return_image=True` it
returns it as uint8 [H, W, 3]; both work without a display. Functions that take `ax` draw there and do no more.
Boxes are (y1, x1, y2, x2) pixels with y2 and x2 exclusive, masks [H, W, N].
"""

from __future__ import annotations

import colorsys
import os
import random
from collections.abc import Sequence
from typing import Any

import numpy as np

from kmrcnn.figures import Picture, as_written, draw_contour, draw_labels, draw_rectangle, draw_refined, to_uint8
from kmrcnn.utils import compute_matches

Path = str | os.PathLike | None
Color = Sequence[float]


def display_images(
    images: Sequence[np.ndarray],
    titles: Sequence[str] | None = None,
    cols: int = 4,
    cmap: Any = None,
    norm: Any = None,
    interpolation: str | None = None,
    save_path: Path = None,
    return_image: bool = False,
) -> np.ndarray | None:
    """A grid of images with their titles."""
    cols = max(1, min(cols, len(images)))
    rows = max(1, -(-len(images) // cols))
    titles = list(titles) if titles is not None else [""] * len(images)
    picture = Picture((14, 14 * rows / cols + 0.4), None, save_path, return_image, rows, cols)
    for axes in picture.axes.flat:
        axes.axis("off")
    for axes, image, title in zip(picture.axes.flat, images, titles, strict=False):
        axes.set_title(as_written(title), fontsize=11)
        image = image if image.ndim == 2 else to_uint8(image)
        axes.imshow(image, cmap=cmap, norm=norm, interpolation=interpolation)
    picture.figure.tight_layout()
    return picture.finish()


def random_colors(N: int, bright: bool = True) -> list[tuple[float, float, float]]:
    """N colours (r, g, b) in 0..1 of evenly spaced hues, in an order that depends on N only."""
    value = 1.0 if bright else 0.7
    colors = [colorsys.hsv_to_rgb(index / N, 1, value) for index in range(N)]
    random.Random(N).shuffle(colors)
    return colors


def apply_mask(image: np.ndarray, mask: np.ndarray, color: Color, alpha: float = 0.5) -> np.ndarray:
    """Blend a colour (0..1) into the pixels of `mask` [H, W]. Works in place and returns the image."""
    where = np.asarray(mask, bool)
    image[where, :3] = image[where, :3] * (1 - alpha) + alpha * np.asarray(color[:3]) * 255
    return image


def display_instances(
    image: np.ndarray,
    boxes: np.ndarray,
    masks: np.ndarray | None,
    class_ids: np.ndarray,
    class_names: Sequence[str],
    scores: np.ndarray | None = None,
    title: str = "",
    figsize: tuple[float, float] = (16, 16),
    ax: Any = None,
    show_mask: bool = True,
    show_bbox: bool = True,
    colors: Sequence[Color] | None = None,
    captions: Sequence[str | None] | None = None,
    save_path: Path = None,
    return_image: bool = False,
) -> np.ndarray | None:
    """An image with its instances: boxes, masks with their contours, and labels such as "cat 0.987".

    Args:
        image: [H, W, 3] uint8, or grey [H, W].
        boxes, masks, class_ids, scores: (N, 4), [H, W, N], (N,), (N,); rows whose box is zero are skipped.
            A negative class id is a crowd. `masks` may be None with show_mask=False.
        colors, captions: one for each instance, instead of the built-in ones.
    """
    count = len(boxes)
    if len(class_ids) != count or (show_mask and masks.shape[-1] != count):
        shape = None if masks is None else masks.shape
        raise ValueError(f"found {count} boxes, {len(class_ids)} class ids and masks {shape}, expected equal counts")
    if count == 0:
        print("\n*** No instances to display *** \n")
    if captions is None:
        captions = [_caption(class_names, class_ids, scores, index) for index in range(count)]
    colors = random_colors(count) if colors is None else colors
    picture = Picture.of_image(image, title, figsize, ax, save_path, return_image)
    _draw_instances(picture.ax, image, boxes, masks if show_mask else None, colors, captions, show_bbox)
    return picture.finish()


def _draw_instances(axes: Any, image: np.ndarray, boxes: np.ndarray, masks: np.ndarray | None,
                    colors: Sequence[Color], captions: Sequence[str | None], show_bbox: bool,
                    alpha: float = 0.5) -> None:
    canvas = to_uint8(image)
    real = [index for index in range(len(boxes)) if np.any(boxes[index])]
    # Large ones first, so that they do not hide small ones.
    area = [0 if masks is None else -np.count_nonzero(masks[..., index]) for index in real]
    for index in [real[rank] for rank in np.argsort(area, kind="stable")]:
        if masks is not None:
            apply_mask(canvas, masks[..., index], colors[index], alpha)
            draw_contour(axes, masks[..., index], colors[index])
        if show_bbox:
            draw_rectangle(axes, boxes[index], colors[index], "--", alpha=0.7)
    _show(axes, canvas)
    draw_labels(axes, *([row[index] for index in real] for row in (boxes, captions, colors)), _font_size(len(real)))


def _show(axes: Any, canvas: np.ndarray) -> None:
    """Draw the image under what is drawn already, leaving the view as it is."""
    limits = axes.get_xlim(), axes.get_ylim()
    axes.imshow(canvas)
    axes.set(xlim=limits[0], ylim=limits[1])


def display_differences(
    image: np.ndarray,
    gt_box: np.ndarray,
    gt_class_id: np.ndarray,
    gt_mask: np.ndarray,
    pred_box: np.ndarray,
    pred_class_id: np.ndarray,
    pred_score: np.ndarray,
    pred_mask: np.ndarray,
    class_names: Sequence[str],
    title: str = "",
    ax: Any = None,
    show_mask: bool = True,
    show_box: bool = True,
    iou_threshold: float = 0.5,
    score_threshold: float = 0.5,
    save_path: Path = None,
    return_image: bool = False,
) -> np.ndarray | None:
    """Ground truth in green and predictions in red, the latter labelled "score / IoU"."""
    real = np.flatnonzero(np.any(gt_box != 0, axis=1))
    found = np.flatnonzero(np.any(pred_box != 0, axis=1))
    found = found[np.argsort(-pred_score[found], kind="stable")]
    truth = gt_box[real], gt_class_id[real], gt_mask[..., real]
    predicted = pred_box[found], pred_class_id[found], pred_score[found], pred_mask[..., found]
    _, pred_match, overlaps = compute_matches(*truth, *predicted, iou_threshold, score_threshold)
    best = [row[int(match)] if match > -1 else row.max(initial=0) for match, row in zip(pred_match, overlaps,
                                                                                        strict=True)]
    captions = [None] * len(real) + [f"{score:.2f} / {iou:.2f}" for score, iou in zip(predicted[2], best, strict=True)]
    title = title or "Ground Truth and Detections\n GT=green, pred=red, captions: score/IoU"
    picture = Picture.of_image(image, title, (16, 16), ax, save_path, return_image)
    boxes = np.concatenate([truth[0], predicted[0]])
    masks = np.concatenate([truth[2], predicted[3]], axis=-1) if show_mask else None
    colors = [(0.0, 1.0, 0.0)] * len(real) + [(1.0, 0.0, 0.0)] * len(found)
    _draw_instances(picture.ax, image, boxes, masks, colors, captions, show_box, alpha=0.2)
    return picture.finish()


def draw_rois(
    image: np.ndarray,
    rois: np.ndarray,
    refined_rois: np.ndarray,
    mask: np.ndarray,
    class_ids: np.ndarray,
    class_names: Sequence[str],
    limit: int = 10,
    save_path: Path = None,
    return_image: bool = False,
) -> np.ndarray | None:
    """Up to `limit` ROIs (N, 4): dashed, with their refined box solid and their mask target (N, h, w)."""
    from kmrcnn.data.image import unmold_mask

    shown = np.arange(len(rois))
    title = f"{len(rois)} ROIs"
    if len(rois) > limit:
        shown = np.sort(np.random.default_rng(0).choice(len(rois), limit, replace=False))
        title = f"Showing {limit} random ROIs out of {len(rois)}"
    picture = Picture.of_image(image, title, (12, 12), None, save_path, return_image, margin=20)
    canvas = to_uint8(image)
    colors = random_colors(len(shown))
    for index, color in zip(shown, colors, strict=True):
        class_id = int(class_ids[index])
        draw_rectangle(picture.ax, rois[index], color if class_id else "gray", "--", width=2)
        if class_id:
            draw_refined(picture.ax, rois[index], refined_rois[index], color)
            apply_mask(canvas, unmold_mask(mask[index], rois[index][:4].astype(np.int32), image.shape), color)
    _show(picture.ax, canvas)
    names = [_class_name(class_names, class_ids[index]) if class_ids[index] else None for index in shown]
    draw_labels(picture.ax, refined_rois[shown], names, colors, 11)
    positive = int(np.sum(class_ids > 0))
    print(f"Positive ROIs: {positive}\nNegative ROIs: {int(np.sum(class_ids == 0))}")
    print(f"Positive Ratio: {positive / max(len(class_ids), 1):.2f}")
    return picture.finish()


def draw_box(image: np.ndarray, box: Sequence[int], color: Color) -> np.ndarray:
    """Draw a border of 2 pixels just inside a box, in place; `color` has the image's own range."""
    height, width = image.shape[:2]
    y1, x1, y2, x2 = (int(value) for value in np.clip(box, 0, [height, width, height, width]))
    inner = image[y1:y2, x1:x2]
    for border in (inner[:2], inner[-2:], inner[:, :2], inner[:, -2:]):
        border[...] = color
    return image


def display_top_masks(
    image: np.ndarray,
    mask: np.ndarray,
    class_ids: np.ndarray,
    class_names: Sequence[str],
    limit: int = 4,
    save_path: Path = None,
    return_image: bool = False,
) -> np.ndarray | None:
    """The image, and beside it the masks [H, W, N] of the classes that cover most of it."""
    images, titles = [image], [f"H x W={image.shape[0]}x{image.shape[1]}"]
    present = np.unique(class_ids)
    areas = np.array([np.sum(mask[..., class_ids == class_id]) for class_id in present])
    largest = [class_id for class_id, area in zip(present, areas, strict=True) if area > 0]
    largest.sort(key=lambda class_id: -areas[present == class_id][0])
    for class_id in largest[:limit]:
        of_class = mask[..., class_ids == class_id]
        numbered = np.max(of_class * np.arange(1, of_class.shape[-1] + 1), axis=-1)  # a shade for each instance
        images.append(numbered)
        titles.append(_class_name(class_names, class_id))
    blank = limit + 1 - len(images)
    images += [np.zeros(image.shape[:2])] * blank
    titles += ["-"] * blank
    return display_images(images, titles, limit + 1, "Blues_r", save_path=save_path, return_image=return_image)


def plot_precision_recall(
    AP: float,
    precisions: np.ndarray,
    recalls: np.ndarray,
    save_path: Path = None,
    return_image: bool = False,
) -> np.ndarray | None:
    """The precision-recall curve of `utils.compute_ap`."""
    picture = Picture((6.4, 4.8), None, save_path, return_image)
    axes = picture.ax
    axes.set_title(f"Precision-Recall Curve. AP@50 = {AP:.3f}")
    axes.set(xlim=(0, 1.1), ylim=(0, 1.1), xlabel="recall", ylabel="precision")
    axes.plot(recalls, precisions)
    return picture.finish()


def plot_overlaps(
    gt_class_ids: np.ndarray,
    pred_class_ids: np.ndarray,
    pred_scores: np.ndarray,
    overlaps: np.ndarray,
    class_names: Sequence[str],
    threshold: float = 0.5,
    save_path: Path = None,
    return_image: bool = False,
) -> np.ndarray | None:
    """A grid of the IoU (P, G) of predictions and ground truth; above the threshold marked match or wrong.

    Rows are the predictions in the order of `overlaps`, which `compute_matches` sorts by score.
    """
    gt_class_ids = np.asarray(gt_class_ids)[np.asarray(gt_class_ids) != 0]
    pred_class_ids = np.asarray(pred_class_ids)[np.asarray(pred_class_ids) != 0]
    rows, cols = np.shape(overlaps)
    picture = Picture((3 + 0.75 * max(cols, 4), 2 + 0.55 * max(rows, 4)), None, save_path, return_image)
    axes = picture.ax
    if rows and cols:
        axes.imshow(overlaps, "Blues", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    labels = [f"{as_written(_class_name(class_names, class_id))} ({score:.2f})"
              for class_id, score in zip(pred_class_ids, pred_scores, strict=False)]
    axes.set_yticks(np.arange(len(labels)), labels)
    names = [as_written(_class_name(class_names, class_id)) for class_id in gt_class_ids]
    axes.set_xticks(np.arange(len(names)), names, rotation=90)
    for row, col in np.ndindex(rows, cols):
        iou = overlaps[row][col]
        word = "match" if pred_class_ids[row] == gt_class_ids[col] else "wrong"
        axes.text(col, row, f"{iou:.3f}" + (f"\n{word}" if iou > threshold else ""), ha="center", va="center",
                  fontsize=9, color="white" if iou > 0.5 else "black")
    axes.set(xlabel="Ground Truth", ylabel="Predictions")
    picture.figure.tight_layout()
    return picture.finish()


def draw_boxes(
    image: np.ndarray,
    boxes: np.ndarray | None = None,
    refined_boxes: np.ndarray | None = None,
    masks: np.ndarray | None = None,
    captions: Sequence[str | None] | None = None,
    visibilities: Sequence[int] | None = None,
    title: str = "",
    ax: Any = None,
    save_path: Path = None,
    return_image: bool = False,
) -> np.ndarray | None:
    """Boxes (N, 4) before and after refinement, with masks [H, W, N] and captions.

    visibilities: for each box 0 gray and dotted, 1 dotted, 2 solid. Without them, boxes that are refined are
    dashed and all others solid.
    """
    if boxes is None and refined_boxes is None:
        raise ValueError("draw_boxes: found neither boxes nor refined_boxes, expected at least one")
    count = len(boxes if boxes is not None else refined_boxes)
    picture = Picture.of_image(image, title, (12, 12), ax, save_path, return_image, margin=image.shape[0] // 10)
    canvas = to_uint8(image)
    colors = random_colors(count)
    for index, color in enumerate(colors):
        visibility = 1 if visibilities is None else visibilities[index]
        color = "gray" if visibility == 0 else color
        if boxes is not None and np.any(boxes[index]):
            style = {0: ":", 1: ":", 2: "-"}[visibility] if visibilities is not None else _style(refined_boxes)
            draw_rectangle(picture.ax, boxes[index], color, style, width=2, alpha=1.0 if visibility else 0.5)
        if refined_boxes is not None and visibility > 0:
            draw_refined(picture.ax, boxes[index] if boxes is not None else None, refined_boxes[index], color)
        if masks is not None and visibility > 0:
            apply_mask(canvas, masks[..., index], color)
            draw_contour(picture.ax, masks[..., index], color)
    _show(picture.ax, canvas)
    if captions is not None:
        draw_labels(picture.ax, boxes if refined_boxes is None else refined_boxes, captions, colors, 11)
    return picture.finish()


def _style(refined_boxes: np.ndarray | None) -> str:
    return "-" if refined_boxes is None else "--"


def display_table(table: Sequence[Sequence[Any]]) -> str:
    """Show rows of cells as an HTML table in a notebook, as text elsewhere. Returns the HTML."""
    import html

    rows = "".join(f"<tr>{''.join(f'<td>{html.escape(str(cell))}</td>' for cell in row)}</tr>" for row in table)
    text = f"<table>{rows}</table>"
    if _in_notebook():
        from IPython.display import HTML, display

        display(HTML(text))
        return text
    widths = [max(len(str(cell)) for cell in column) for column in zip(*table, strict=True)]
    for row in table:
        print("  ".join(f"{cell!s:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
    return text


def _in_notebook() -> bool:
    import sys

    if "IPython" not in sys.modules:
        return False
    shell = sys.modules["IPython"].get_ipython()
    return shell is not None and "IPKernelApp" in shell.config


def display_weight_stats(model: Any) -> str:
    """A table of every weight's shape, minimum, maximum and standard deviation.

    Marks weights that are constant ("dead?", biases aside) or beyond 1000 ("Overflow?").
    `model` is a MaskRCNN or a Keras model.
    """
    layers = model.get_trainable_layers() if hasattr(model, "get_trainable_layers") else model.layers
    table = [["WEIGHT NAME", "SHAPE", "MIN", "MAX", "STD"]]
    for layer in layers:
        for weight, value in zip(layer.weights, layer.get_weights(), strict=True):
            low, high = float(value.min()), float(value.max())
            alert = "*** dead?" if low == high and weight.name != "bias" else ""
            alert += "*** Overflow?" if max(abs(low), abs(high)) > 1000 else ""
            table.append([weight.path + alert, str(tuple(value.shape)), f"{low:+9.4f}", f"{high:+10.4f}",
                          f"{value.std():+9.4f}"])
    return display_table(table)


def _class_name(class_names: Sequence[str], class_id: int) -> str:
    name = class_names[abs(int(class_id))]
    return f"{name} (crowd)" if class_id < 0 else name


def _caption(class_names: Sequence[str], class_ids: np.ndarray, scores: np.ndarray | None, index: int) -> str:
    name = _class_name(class_names, class_ids[index])
    return name if scores is None else f"{name} {scores[index]:.3f}"


def _font_size(count: int) -> int:
    """Smaller labels where many instances share the picture."""
    return 11 if count <= 20 else 8 if count <= 60 else 6
