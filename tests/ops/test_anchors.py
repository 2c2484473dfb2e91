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


# Cell anchors of Detectron's rule, x1 y1 x2 y2 inclusive, computed independently from its published rule: by stride
# and side of the square anchor, for height / width of 0.5, 1 and 2.
BASE_BOXES = {
    (4, 32): [(-22, -10, 25, 13), (-14, -14, 17, 17), (-10, -22, 13, 25)],
    (8, 64): [(-40, -20, 47, 27), (-28, -28, 35, 35), (-20, -44, 27, 51)],
    (16, 128): [(-84, -40, 99, 55), (-56, -56, 71, 71), (-36, -80, 51, 95)],
    (32, 256): [(-164, -72, 195, 103), (-112, -112, 143, 143), (-76, -168, 107, 199)],
    (64, 512): [(-332, -152, 395, 215), (-224, -224, 287, 287), (-148, -328, 211, 391)],
    (16, 32): [(-15, -4, 30, 19), (-8, -8, 23, 23), (-3, -14, 18, 29)],
    (16, 512): [(-360, -184, 375, 199), (-248, -248, 263, 263), (-168, -344, 183, 359)],
}


def _half_open(boxes) -> np.ndarray:
    return np.array(boxes, float)[:, [1, 0, 3, 2]] + (0, 0, 1, 1)


@pytest.mark.parametrize(("stride", "size"), BASE_BOXES)
def test_base_boxes_golden(stride, size):
    anchors = generate_anchors(size, (2, 1, 0.5), (2, 3), stride, rounding="base_box")
    np.testing.assert_array_equal(anchors[:3], _half_open(BASE_BOXES[stride, size]))
    np.testing.assert_array_equal(anchors[12:15], anchors[:3] + (stride, 0, stride, 0) + (0, stride, 0, stride))


def test_base_boxes_of_retinanet_golden():
    """Three scales an octave on stride 8, ratio by ratio; independently computed as above."""
    anchors = generate_anchors(32 * 2 ** (np.arange(3) / 3), (2, 1, 0.5), (1, 1), 8, rounding="base_box")
    expected = [(-18, -8, 25, 15), (-23.718263, -11.119053, 30.718263, 18.119053),
                (-30.922823, -15.048813, 37.922823, 22.048813), (-12, -12, 19, 19),
                (-8, -20, 15, 27), (-11.119053, -26.238105, 18.119053, 33.238105),
                (-15.048813, -34.097625, 22.048813, 41.097625)]
    np.testing.assert_allclose(anchors[[0, 1, 2, 3, 6, 7, 8]], _half_open(expected), atol=1e-5)


def test_half_sides_are_whole_and_strides_follow_the_feature_maps():
    """torchvision's cell anchors, as its documentation of AnchorGenerator gives the rule; 64 * sqrt(2) / 2 = 45.25."""
    shapes = [(200, 272), (13, 17)]
    anchors = generate_pyramid_anchors((32, 64), (2, 1, 0.5), shapes, (4, 64), rounding="half_sides")
    np.testing.assert_array_equal(anchors[:3], [(-11, -23, 11, 23), (-16, -16, 16, 16), (-23, -11, 23, 11)])
    coarse = anchors[200 * 272 * 3:].reshape(13, 17, 3, 4)
    np.testing.assert_array_equal(coarse[0, 0], [(-23, -45, 23, 45), (-32, -32, 32, 32), (-45, -23, 45, 23)])
    # 800 pixels over 13 cells are 61 each, although the stride of the level is 64; 1088 over 17 are 64.
    np.testing.assert_array_equal(coarse[2, 3] - coarse[0, 0], np.tile([2 * 61, 3 * 64] * 2, (3, 1)))


def test_half_sides_round_half_to_even():
    np.testing.assert_array_equal(generate_anchors((5, 7), (1,), (1, 1), 4, rounding="half_sides"),
                                  [(-2, -2, 2, 2), (-4, -4, 4, 4)])


@pytest.mark.parametrize("rounding", [None, "half_sides", "base_box"])
def test_offset_moves_all_anchors_by_cells(rounding):
    def anchors(offset):
        return generate_anchors((32, 50), (0.5, 1), (3, 4), 8, 1, rounding=rounding, offset=offset)

    np.testing.assert_allclose(anchors(0.5) - anchors(0), 4.0)


def test_unknown_rounding():
    with pytest.raises(ValueError, match="rounding must be one of .*'half_sides', 'base_box'.*found 'half'"):
        generate_anchors(8, (1,), (1, 1), 4, rounding="half")
