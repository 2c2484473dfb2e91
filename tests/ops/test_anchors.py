"""Anchors against the golden values, computed independently from Matterport's published rules."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from kmrcnn.ops import generate_anchors, generate_pyramid_anchors, pyramid_shapes

pytestmark = pytest.mark.once

STRIDES, RATIOS = (4, 8, 16, 32, 64), (0.5, 1, 2)


def _pyramid(size: int, scales) -> np.ndarray:
    return generate_pyramid_anchors(scales, RATIOS, pyramid_shapes((size, size, 3), STRIDES), STRIDES, 1)


def test_1024_golden():
    """Origin: Matterport's default configuration on a 1024 x 1024 image."""
    anchors = _pyramid(1024, (32, 64, 128, 256, 512))
    assert anchors.shape == (261888, 4)
    np.testing.assert_allclose(anchors[:4], [(-22.6274, -11.3137, 22.6274, 11.3137), (-16, -16, 16, 16),
                                             (-11.3137, -22.6274, 11.3137, 22.6274),
                                             (-22.6274, -7.3137, 22.6274, 15.3137)], atol=1e-4)
    np.testing.assert_allclose(anchors[-1], (778.9807, 597.9613, 1141.0193, 1322.0387), atol=1e-4)
    assert anchors.sum() == pytest.approx(533299200.0)
    np.testing.assert_allclose(anchors.mean(0), (484.877, 484.877, 533.3048, 533.3048), atol=1e-3)
    normalised = (anchors[[0, -1]] - (0, 0, 1, 1)) / 1023
    np.testing.assert_allclose(normalised, [(-0.022119, -0.011059, 0.021141, 0.010082),
                                            (0.761467, 0.584517, 1.114388, 1.291338)], atol=1e-6)


def test_levels_and_other_sizes_golden():
    """Origin: ceil(side / stride)^2 cells of three ratios; scales 8 to 128 for the small images."""
    shapes = pyramid_shapes((1024, 1024), STRIDES)
    assert (shapes.prod(1) * 3).tolist() == [196608, 49152, 12288, 3072, 768]
    small = (8, 16, 32, 64, 128)
    assert len(_pyramid(512, small)) == 65472 and len(_pyramid(128, small)) == 4092
    assert pyramid_shapes((100, 65, 3), (4, 64)).tolist() == [[25, 17], [2, 2]]


def test_anchor_stride_and_several_scales():
    anchors = generate_anchors((8, 16), (1,), (3, 5), 4, 2)
    assert anchors.shape == (2 * 3 * 2, 4)
    np.testing.assert_array_equal(anchors[:3], [(-4, -4, 4, 4), (-8, -8, 8, 8), (-4, 4, 4, 12)])


def test_level_counts_must_agree():
    with pytest.raises(ValueError, match="2 scales, 1 shapes and 1 strides"):
        generate_pyramid_anchors((8, 16), RATIOS, [(4, 4)], (4,), 1)


def test_anchors_do_not_load_keras():
    code = "import sys, kmrcnn.ops.anchors, kmrcnn.ops; sys.exit('keras' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
