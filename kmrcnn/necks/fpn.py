"""Feature pyramid network (Lin et al. 2017)."""

from __future__ import annotations

import keras

from kmrcnn.layers import Conv2D, MaxPooling2D, Upsampling2x


def fpn(features: list, channels: int = 256) -> list:
    """[P2, P3, P4, P5, P6] from [C2, C3, C4, C5], every level with `channels` channels.

    Nearest upsampling, 3x3 smoothing of each sum; P6 is P5 subsampled by two. No normalisation, biases everywhere.
    """
    top_down = Conv2D(channels, 1, name="fpn_c5p5")(features[3])
    sums = {5: top_down}
    for level in (4, 3, 2):
        upsampled = Upsampling2x(name=f"fpn_p{level + 1}upsampled")(top_down)
        lateral = Conv2D(channels, 1, name=f"fpn_c{level}p{level}")(features[level - 2])
        top_down = sums[level] = keras.layers.Add(name=f"fpn_p{level}add")([upsampled, lateral])
    levels = [Conv2D(channels, 3, padding="same", name=f"fpn_p{level}")(sums[level]) for level in (2, 3, 4, 5)]
    return [*levels, MaxPooling2D(1, strides=2, name="fpn_p6")(levels[-1])]
