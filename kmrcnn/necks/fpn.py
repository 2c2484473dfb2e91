"""Feature pyramid network (Lin et al. 2017)."""

from __future__ import annotations

import keras

from kmrcnn.layers import BilinearResize, Conv2D, MaxPooling2D, Normalization, Upsampling2x


def fpn(features: list, channels: int = 256, norm: Normalization | None = None, *, use_bias: bool = True,
        top_down: str = "sums", upsampling: str = "nearest") -> list:
    """[P2, P3, P4, P5, P6] from [C2, C3, C4, C5], every level with `channels` channels; P6 is P5 subsampled by two.

    Args:
        norm: makes the normalisation after each convolution; none by default.
        use_bias: convolutions that a normalisation follows have biases; the others always have.
        top_down: what is enlarged and added to the next finer level: the "sums" before the 3x3 convolutions, or
            the "outputs" of these (liangheming/maskrcnn).
        upsampling: "nearest", where every level must have exactly twice the sides of the next, or "bilinear" to
            any sides, corner pixels staying in the corners.

    Raises:
        ValueError: for an unknown `top_down` or `upsampling`.
    """
    if top_down not in ("sums", "outputs"):
        raise ValueError(f"top_down must be 'sums' or 'outputs', got {top_down!r}")
    norm = norm or Normalization(None)

    def conv(x, size: int, name: str):
        x = Conv2D(channels, size, padding="same", use_bias=norm.needs_bias(use_bias), name=name)(x)
        return norm(f"{name}_norm")(x)

    sums, levels, above = {}, {}, None
    for level in (5, 4, 3, 2):
        x = conv(features[level - 2], 1, f"fpn_c{level}p{level}")
        if above is not None:
            above = _enlarge(above, x, upsampling, f"fpn_p{level + 1}upsampled")
            x = keras.layers.Add(name=f"fpn_p{level}add")([above, x])
        above = sums[level] = x
        if top_down == "outputs":
            above = levels[level] = conv(x, 3, f"fpn_p{level}")
    if top_down == "sums":
        levels = {level: conv(sums[level], 3, f"fpn_p{level}") for level in (2, 3, 4, 5)}
    return [*(levels[level] for level in (2, 3, 4, 5)), MaxPooling2D(1, strides=2, name="fpn_p6")(levels[5])]


def _enlarge(x, like, upsampling: str, name: str):
    if upsampling == "bilinear":
        return BilinearResize(name=name)(x, like)
    if upsampling != "nearest":
        raise ValueError(f"upsampling must be 'nearest' or 'bilinear', got {upsampling!r}")
    return Upsampling2x(name=name)(x)
