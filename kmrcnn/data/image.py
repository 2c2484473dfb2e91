"""Images into the network's frame and back: resize, mold, image meta. Matterport's helpers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from kmrcnn.data.masks import expand_mask, extract_bboxes, minimize_mask, unmold_mask
from kmrcnn.data.resample import nearest_index, resize_bilinear
from kmrcnn.data.resize_plan import pad, plan_for, plan_resize

__all__ = [
    "resize",
    "resize_image",
    "resize_mask",
    "extract_bboxes",
    "minimize_mask",
    "expand_mask",
    "unmold_mask",
    "with_channels",
    "mold_image",
    "unmold_image",
    "mold_input",
    "fit_input",
    "compose_image_meta",
    "parse_image_meta",
]


def resize_image(
    image: np.ndarray,
    min_dim: int | None = None,
    max_dim: int | None = None,
    min_scale: float | None = None,
    mode: str = "square",
    divisor: int = 64,
    rng: np.random.Generator | None = None,
) -> tuple:
    """Resize an image [H, W, C], keeping its aspect ratio and dtype.

    Args:
        min_dim: scale up so that the shorter side is at least this, in mode "shortest" exactly this.
        max_dim: in modes "square" and "shortest", the longer side is at most this; "square" pads to
            max_dim x max_dim.
        min_scale: scale up at least by this, whatever min_dim asks.
        mode: "none", "square", "pad64", "crop" or "shortest".
        divisor: multiple that modes "pad64" and "shortest" pad to.
        rng: draws the place in mode "crop"; Python's `random` without one.

    Returns:
        (image, window, scale, padding, crop): window (y1, x1, y2, x2) is the image's part of the result;
        padding [(top, bottom), (left, right), (0, 0)]; crop (y, x, height, width) or None.
    """
    plan = plan_resize(*image.shape[:2], min_dim, max_dim, min_scale, mode, divisor, rng)
    return plan.image(image), plan.window, plan.scale, list(plan.padding), plan.crop


def resize_mask(
    mask: np.ndarray, scale: float, padding: Sequence, crop: Sequence[int] | None = None
) -> np.ndarray:
    """Bring masks [H, W, N] to an image's new frame with what `resize_image` returned.

    Nearest neighbour on the image's own sampling grid, so that masks stay on their pixels.
    """
    rows = nearest_index(max(1, round(mask.shape[0] * scale)), mask.shape[0])
    columns = nearest_index(max(1, round(mask.shape[1] * scale)), mask.shape[1])
    mask = mask[rows][:, columns]
    if crop is not None:
        y, x, height, width = crop
        return mask[y : y + height, x : x + width]
    return pad(mask, padding)


def resize(
    image: np.ndarray,
    output_shape: Sequence[int],
    order: int = 1,
    mode: str = "edge",
    cval: float = 0,
    clip: bool = True,
    preserve_range: bool = False,
    anti_aliasing: bool = False,
    anti_aliasing_sigma: float | None = None,
) -> np.ndarray:
    """skimage.transform.resize with Matterport's signature; bool arrays work with any order.

    The default `mode` is "edge": "constant" darkens borders when enlarging. Plain bilinear resizing of floats
    takes the short way without skimage.
    """
    if image.dtype == bool:
        image = image.astype(np.float32)
    plain = order == 1 and mode == "edge" and not anti_aliasing and image.dtype.kind == "f"
    if plain and image.ndim in (2, 3) and tuple(output_shape[2:]) in ((), image.shape[2:]):
        return resize_bilinear(image, int(output_shape[0]), int(output_shape[1])).astype(image.dtype)
    from skimage import transform

    return transform.resize(
        image,
        output_shape,
        order=order,
        mode=mode,
        cval=cval,
        clip=clip,
        preserve_range=preserve_range,
        anti_aliasing=anti_aliasing,
        anti_aliasing_sigma=anti_aliasing_sigma,
    )


def with_channels(image: np.ndarray) -> np.ndarray:
    """An image [H, W] as [H, W, 3]; others as they are."""
    image = np.asarray(image)
    return np.repeat(image[:, :, None], 3, axis=2) if image.ndim == 2 else image


def mold_image(images: np.ndarray, config: Any) -> np.ndarray:
    """(images - config.MEAN_PIXEL) / config.STD_PIXEL of RGB images [..., H, W, C]; float32."""
    centred = np.asarray(images, np.float32) - np.asarray(config.MEAN_PIXEL, np.float32)
    std = np.asarray(config.STD_PIXEL, np.float32)
    if (std != 1).any():
        centred /= std
    return centred


def clear_margin(molded: np.ndarray, window: Sequence[int], config: Any) -> None:
    """In mode "shortest" set what lies outside the window of a molded image [H, W, C] to zero, in place.

    There the padding is zero after normalisation, the mean colour; in the other modes it is black before.
    """
    if config.IMAGE_RESIZE_MODE == "shortest":
        y1, x1, y2, x2 = window
        molded[:y1] = molded[y2:] = 0
        molded[:, :x1] = molded[:, x2:] = 0


def unmold_image(normalized_images: np.ndarray, config: Any) -> np.ndarray:
    """Inverse of mold_image; uint8."""
    pixels = normalized_images * np.asarray(config.STD_PIXEL, np.float32) + np.asarray(config.MEAN_PIXEL, np.float32)
    return pixels.round().clip(0, 255).astype(np.uint8)


def mold_input(image: np.ndarray, config: Any) -> tuple[np.ndarray, np.ndarray, tuple[int, int, int, int]]:
    """One image [H, W, C] made ready for the network: `fit_input` and normalised.

    Returns (molded float32 [h, w, C], image meta (12 + NUM_CLASSES,), window in molded pixels); raises as that does.
    """
    pixels, meta, window = fit_input(image, config)
    molded = mold_image(pixels, config)
    clear_margin(molded, window, config)
    return molded, meta, window


def fit_input(image: np.ndarray, config: Any) -> tuple[np.ndarray, np.ndarray, tuple[int, int, int, int]]:
    """One image [H, W, C] resized and padded for detection by the Config's resize rule.

    Returns (pixels [h, w, C] of the image's dtype, or float32 if IMAGE_INTERPOLATION gives that; image meta
    (12 + NUM_CLASSES,); window in these pixels). Raises ValueError where mode "crop", which is for training, would
    cut off a part of the image, or mode "none" cannot take it.
    """
    plan = plan_for(config, *image.shape[:2])
    if plan.shape != plan.resized and plan.crop:
        raise ValueError(
            f"IMAGE_RESIZE_MODE 'crop' would cut {plan.resized} pixels to {plan.shape}: detection needs the whole "
            "image, set 'pad64' or 'square'"
        )
    pixels = plan.image(image)
    active = np.zeros(config.NUM_CLASSES, np.int32)
    meta = compose_image_meta(0, image.shape, pixels.shape, plan.window, plan.scale, active)
    return pixels, meta, plan.window


def compose_image_meta(
    image_id: int,
    original_image_shape: Sequence[int],
    image_shape: Sequence[int],
    window: Sequence[int],
    scale: float,
    active_class_ids: Sequence[int],
) -> np.ndarray:
    """Facts about an image as one float64 vector of 12 + NUM_CLASSES numbers.

    Layout: image id, original shape HWC, molded shape HWC, window y1 x1 y2 x2 in pixels, scale, and for each
    class 1 where the image's source annotates it.
    """
    return np.array(
        [image_id, *original_image_shape, *image_shape, *window, scale, *active_class_ids], np.float64
    )


def parse_image_meta(meta: np.ndarray) -> dict[str, np.ndarray]:
    """Take image metas (B, 12 + NUM_CLASSES) apart; int32 except `scale`, float32."""
    return {
        "image_id": meta[:, 0].astype(np.int32),
        "original_image_shape": meta[:, 1:4].astype(np.int32),
        "image_shape": meta[:, 4:7].astype(np.int32),
        "window": meta[:, 7:11].astype(np.int32),
        "scale": meta[:, 11].astype(np.float32),
        "active_class_ids": meta[:, 12:].astype(np.int32),
    }
