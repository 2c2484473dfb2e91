"""visualize: every picture can be saved and returned without a display, and shows what it should."""

from __future__ import annotations

import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from kmrcnn import visualize

pytestmark = pytest.mark.once

NAMES = ["BG", "square", "circle"]


@pytest.fixture
def scene():
    image = np.full((64, 96, 3), 90, np.uint8)
    masks = np.zeros((64, 96, 3), bool)
    boxes = np.array([[4, 4, 30, 40], [20, 50, 60, 96], [0, 0, 0, 0]])
    for index, (y1, x1, y2, x2) in enumerate(boxes):
        masks[y1:y2, x1:x2, index] = True
    return SimpleNamespace(image=image, boxes=boxes, masks=masks, class_ids=np.array([1, 2, 0]),
                           scores=np.array([0.9, 0.8, 0.0]))


def _calls(scene):
    detected = (scene.boxes, scene.class_ids, scene.scores, scene.masks)
    small = np.ones((3, 28, 28), np.float32)
    overlaps = np.array([[0.9, 0.1], [0.0, 0.6]])
    return {
        "display_images": ([scene.image, scene.masks[..., 0], scene.image], ["a", "b", "c"], 2),
        "display_instances": (scene.image, scene.boxes, scene.masks, scene.class_ids, NAMES, scene.scores, "title"),
        "display_differences": (scene.image, scene.boxes, scene.class_ids, scene.masks, *detected, NAMES),
        "draw_rois": (scene.image, scene.boxes, scene.boxes + 2, small, scene.class_ids, NAMES, 2),
        "display_top_masks": (scene.image, scene.masks, scene.class_ids, NAMES),
        "plot_precision_recall": (0.5, np.array([1, 0.5, 0]), np.array([0, 0.5, 1])),
        "plot_overlaps": ([1, 2], [1, 1], [0.9, 0.8], overlaps, NAMES),
        "draw_boxes": (scene.image, scene.boxes, scene.boxes + 2, scene.masks, ["a", None, "c"], [2, 1, 0]),
    }


FUNCTIONS = ["display_images", "display_instances", "display_differences", "draw_rois", "display_top_masks",
             "plot_precision_recall", "plot_overlaps", "draw_boxes"]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_save_and_return(scene, name, tmp_path):
    before = scene.image.copy()
    path = tmp_path / "picture.png"
    picture = getattr(visualize, name)(*_calls(scene)[name], save_path=path, return_image=True)
    assert picture.dtype == np.uint8
    assert picture.shape[-1] == 3
    assert picture.std() > 0
    np.testing.assert_array_equal(np.asarray(Image.open(path).convert("RGB")), picture)
    np.testing.assert_array_equal(scene.image, before)


def test_saving_needs_no_pyplot(scene, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # importing it now fails
    for name, arguments in _calls(scene).items():
        getattr(visualize, name)(*arguments, save_path=tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").stat().st_size > 0


def test_threads_draw_the_same_picture(scene):
    arguments = _calls(scene)["display_instances"]
    pictures = []
    threads = [threading.Thread(target=lambda: pictures.append(
        visualize.display_instances(*arguments, return_image=True))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(pictures) == 4
    assert all(np.array_equal(picture, pictures[0]) for picture in pictures)


@pytest.mark.filterwarnings("ignore:.*non-interactive")
def test_show_leaves_no_figure_open(scene):
    plt = pytest.importorskip("matplotlib.pyplot")
    plt.switch_backend("agg")
    for name, arguments in _calls(scene).items():
        assert getattr(visualize, name)(*arguments) is None
    assert plt.get_fignums() == []


def test_draws_on_the_callers_axes(scene):
    from matplotlib.figure import Figure

    for name in ("display_instances", "display_differences", "draw_boxes"):
        axes = Figure().subplots()
        assert getattr(visualize, name)(*_calls(scene)[name], ax=axes) is None
        assert axes.images
        assert axes.patches


def test_masks_and_contours_sit_on_the_pixels(scene):
    """The picture is an enlarged image: colour inside the mask, none outside."""
    picture = visualize.display_instances(
        scene.image, scene.boxes[1:2], scene.masks[..., 1:2], scene.class_ids[1:2], NAMES, colors=[(1, 0, 0)],
        return_image=True, captions=[None])
    factor = picture.shape[1] / 96
    assert abs(picture.shape[0] / 64 - factor) < 0.1

    def pixel(y, x):
        return picture[int((y + 0.5) * factor), int((x + 0.5) * factor)].tolist()

    for y, x in [(21, 51), (58, 94), (40, 70)]:
        assert pixel(y, x)[0] > 150
        assert pixel(y, x)[1] < 60
    for y, x in [(18, 70), (40, 48), (62, 70)]:
        assert pixel(y, x) == [90, 90, 90]


def test_labels_stay_inside_and_apart(scene):
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    boxes = np.array([[0, 80, 20, 96], [0, 80, 20, 96], [62, 0, 64, 10]])
    visualize.display_instances(scene.image, boxes, None, np.array([1, -2, 2]), NAMES, ax=axes, show_mask=False)
    assert [text.get_text() for text in axes.texts] == ["square", "circle (crowd)", "circle"]
    axes.figure.canvas.draw()
    frame = axes.get_window_extent()
    extents = [text.get_window_extent() for text in axes.texts]
    assert all(extent.x0 >= frame.x0 and extent.x1 <= frame.x1 + 1 for extent in extents)
    assert all(extent.y0 >= frame.y0 - 1 and extent.y1 <= frame.y1 + 1 for extent in extents)
    assert not extents[0].overlaps(extents[1])


def test_names_are_no_formulas(scene):
    """Two dollars would be one for matplotlib."""
    names = ["BG", r"$\frac{1$", "$a$"]
    for name in ("display_instances", "display_differences", "display_top_masks", "plot_overlaps"):
        arguments = [names if argument is NAMES else argument for argument in _calls(scene)[name]]
        assert getattr(visualize, name)(*arguments, return_image=True).std() > 0


def test_no_instances_still_draw_the_image(scene, capsys):
    picture = visualize.display_instances(
        scene.image, np.zeros((0, 4)), np.zeros((64, 96, 0), bool), np.zeros(0, int), NAMES, return_image=True)
    assert "No instances to display" in capsys.readouterr().out
    assert (picture == 90).all()
    with pytest.raises(ValueError, match="found 3 boxes, 2 class ids"):
        visualize.display_instances(scene.image, scene.boxes, scene.masks, scene.class_ids[:2], NAMES)


@pytest.mark.filterwarnings("error")
def test_nothing_found_and_nothing_to_find(scene):
    none, no_masks, no_ids = np.zeros((0, 4)), np.zeros((64, 96, 0), bool), np.zeros(0, int)
    for picture in [
        visualize.plot_overlaps([1, 2], [], [], np.zeros((0, 2)), NAMES, return_image=True),
        visualize.plot_overlaps([], [1], [0.9], np.zeros((1, 0)), NAMES, return_image=True),
        visualize.draw_rois(scene.image, none, none, np.zeros((0, 28, 28)), no_ids, NAMES, return_image=True),
        visualize.draw_boxes(scene.image, none, none, no_masks, [], [], return_image=True),
        visualize.display_top_masks(scene.image, no_masks, no_ids, NAMES, return_image=True),
        visualize.display_images([], return_image=True),
    ]:
        assert picture.ndim == 3 and picture.dtype == np.uint8


def test_a_grey_image_is_drawn_grey(scene):
    arguments = scene.boxes[:1], scene.masks[..., :1], scene.class_ids[:1], NAMES
    grey, rgb = (visualize.display_instances(image, *arguments, return_image=True)
                 for image in (scene.image[..., 0], scene.image))
    np.testing.assert_array_equal(grey, rgb)


def test_differences_without_ground_truth_or_predictions(scene):
    nothing = np.zeros((0, 4)), np.zeros(0, int)
    no_masks = np.zeros((64, 96, 0), bool)
    truth = scene.boxes, scene.class_ids, scene.masks
    found = scene.boxes, scene.class_ids, scene.scores, scene.masks
    for arguments in [(*nothing, no_masks, *found), (*truth, *nothing, np.zeros(0), no_masks)]:
        assert visualize.display_differences(scene.image, *arguments, NAMES, return_image=True).ndim == 3


def test_differences_caption_scores_in_order(scene):
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    found = scene.boxes[[1, 0]], scene.class_ids[[1, 0]], np.array([0.6, 0.7]), scene.masks[..., [1, 0]]
    visualize.display_differences(scene.image, scene.boxes, scene.class_ids, scene.masks, *found, NAMES, ax=axes)
    assert [text.get_text() for text in axes.texts] == ["0.70 / 1.00", "0.60 / 1.00"]


def test_random_colors():
    colors = visualize.random_colors(5)
    assert colors == visualize.random_colors(5)
    assert len(set(colors)) == 5
    assert max(max(color) for color in visualize.random_colors(5, bright=False)) == pytest.approx(0.7)
    assert visualize.random_colors(0) == []


def test_apply_mask_and_draw_box_work_in_place():
    image = np.full((10, 12, 3), 100, np.uint8)
    mask = np.zeros((10, 12), bool)
    mask[2:4, 2:4] = True
    assert visualize.apply_mask(image, mask, (1, 0, 0)) is image
    assert image[2, 2].tolist() == [177, 50, 50]
    assert image[0, 0].tolist() == [100, 100, 100]
    image[:] = 0
    assert visualize.draw_box(image, [1, 2, 9, 20], [9, 8, 7]) is image
    expected = np.zeros((10, 12), bool)
    expected[1:9, 2:12] = True
    expected[3:7, 4:10] = False
    np.testing.assert_array_equal(image.any(axis=-1), expected)


def test_draw_boxes_needs_boxes(scene):
    with pytest.raises(ValueError, match="expected at least one"):
        visualize.draw_boxes(scene.image)
    assert visualize.draw_boxes(scene.image, refined_boxes=scene.boxes, return_image=True).ndim == 3


def test_display_table(capsys):
    html = visualize.display_table([["NAME", "MIN"], ["a<b", 1]])
    assert html == "<table><tr><td>NAME</td><td>MIN</td></tr><tr><td>a&lt;b</td><td>1</td></tr></table>"
    assert capsys.readouterr().out == "NAME  MIN\na<b   1\n"


def test_display_weight_stats():
    arrays = {"kernel": np.array([0.0, 2000.0]), "bias": np.zeros(2), "gamma": np.ones(2)}
    weights = [SimpleNamespace(name=name, path=f"layer/{name}") for name in arrays]
    layer = SimpleNamespace(weights=weights, get_weights=lambda: list(arrays.values()))
    html = visualize.display_weight_stats(SimpleNamespace(layers=[layer]))
    assert "layer/kernel*** Overflow?" in html
    assert "layer/gamma*** dead?" in html
    assert "<td>layer/bias</td>" in html
