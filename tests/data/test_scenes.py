"""Augmentations that act before resizing, need other samples or move keypoints; lists from data; samples by number."""

from __future__ import annotations

import numpy as np
import pytest

from kmrcnn.config import Config
from kmrcnn.data import augment as catalogue
from kmrcnn.data.augment import (
    Affine,
    AspectCrop,
    Augmentation,
    Blur,
    ColorJitter,
    Compose,
    CopyPaste,
    HorizontalFlip,
    HSVJitter,
    Noise,
    OneOf,
    Rotate90,
    ScaleJitter,
    Transpose,
    VerticalFlip,
    build,
)
from kmrcnn.data.copy_paste import paste
from kmrcnn.data.dataset import Dataset
from kmrcnn.data.extents import extract_bboxes
from kmrcnn.data.loader import DataLoader
from kmrcnn.data.resize_plan import plan_resize
from kmrcnn.data.sample import load_image_gt
from kmrcnn.data.scene import Scene
from kmrcnn.data.shapes import ShapesDataset
from tests.data.broken_datasets import SometimesBroken
from tests.data.conftest import make_config

pytestmark = pytest.mark.once
RECIPE = [{"HorizontalFlip": {"probability": 0.5}}, "ScaleJitter", {"Affine": {"min_visible": 0.2}},
          {"CopyPaste": {"probability": 0.7}}, {"OneOf": {"augmentations": ["ColorJitter", "HSVJitter"]}}]


class Lit(Dataset):
    """Every instance is a rectangle of its own grey level on black, so that pixels tell whose they are."""

    def add(self, height, width, boxes, class_ids=None, source="lit"):
        for class_id in (1, 2, 3):
            self.add_class("lit", class_id, f"class {class_id}")
        self.add_image(source, image_id=len(self.image_info), path=None, height=height, width=width, boxes=boxes,
                       classes=class_ids or [1] * len(boxes), first=10 + 40 * len(self.image_info))
        self.prepare()

    def load_image(self, image_id):
        info = self.image_info[image_id]
        image = np.zeros((info["height"], info["width"], 3), np.uint8)
        for index, (y1, x1, y2, x2) in enumerate(info["boxes"]):
            image[y1:y2, x1:x2] = info["first"] + 10 * index
        return image

    def load_mask(self, image_id):
        level = self.load_image(image_id)[:, :, 0]
        info = self.image_info[image_id]
        levels = info["first"] + 10 * np.arange(len(info["boxes"]))
        return level[:, :, None] == levels, np.array(info["classes"], np.int32)


def scene_of(dataset, image_id, keypoints=None):
    return Scene(dataset.load_image(image_id), *dataset.load_mask(image_id), keypoints)


def lit():
    dataset = Lit()
    dataset.add(100, 160, [(10, 20, 40, 60), (50, 90, 95, 150)], [1, -2])
    dataset.add(100, 160, [(20, 30, 60, 100), (70, 10, 90, 40), (0, 120, 30, 160)], [3, 2, -1])
    dataset.add(128, 128, [])
    return dataset


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("mode", ["square", "crop", "shortest"])
def test_scale_jitter_moves_pixels_masks_and_boxes_alike(seed, mode):
    dataset = Lit()
    dataset.add(100, 160, [(10, 20, 40, 60), (50, 90, 95, 150)])
    config = make_config(IMAGE_RESIZE_MODE=mode, USE_MINI_MASK=False, IMAGE_MIN_DIM=128, IMAGE_MAX_DIM=160)
    plain = load_image_gt(dataset, config, 0, rng=np.random.default_rng(0))
    image, meta, class_ids, boxes, masks = load_image_gt(
        dataset, config, 0, augmentation=ScaleJitter(), rng=np.random.default_rng(seed))
    assert image.shape == plain[0].shape and masks.shape[:2] == image.shape[:2]
    scale = meta[11]
    fit = min(image.shape[0] / 100, image.shape[1] / 160)
    assert 0.1 <= scale / fit <= 2
    y1, x1, y2, x2 = meta[7:11].astype(int)
    assert (y1, x1) == (0, 0) and not image[y2:].any() and not image[:, x2:].any()
    np.testing.assert_array_equal(boxes, extract_bboxes(masks))
    for mask, box in zip(np.moveaxis(masks, 2, 0), boxes, strict=True):
        level = 10 if image[:, :, 0][mask].max() <= 10 else 20
        y, x = np.indices(mask.shape)
        inside = (y >= box[0] + 2) & (y < box[2] - 2) & (x >= box[1] + 2) & (x < box[3] - 2)
        assert (image[:, :, 0][inside] == level).all() and mask[inside].all()  # bilinear at its edge
        if box[0] > 0 and box[1] > 0 and box[2] < y2 and box[3] < x2:  # whole: its size is that of the scale
            height, width = (30, 40) if level == 10 else (45, 60)
            assert abs(box[2] - box[0] - height * scale) < 1.5 and abs(box[3] - box[1] - width * scale) < 1.5
            assert mask.sum() == pytest.approx(height * width * scale**2, rel=0.1, abs=2 * (height + width) * scale)


@pytest.mark.parametrize("interpolation", ["uint8", "float", "antialias"])
def test_a_crop_in_the_resizing_is_the_crop_of_the_resized(interpolation):
    rng = np.random.default_rng(0)
    image, masks = rng.integers(0, 256, (60, 90, 3), np.uint8), rng.random((60, 90, 4)) > 0.7
    plan = plan_resize(60, 90, 128, 128)
    for _ in range(10):
        jittered = ScaleJitter(1.2, 2)
        one = jittered.plan(plan, 60, 90, rng)
        one = type(one)(**{**vars(one), "interpolation": interpolation})
        all_of_it = type(one)(**{**vars(one), "crop_first": False})
        assert one.crop and one.shape == plan.shape
        wanted = all_of_it.image(image)[1:-1, 1:-1]  # antialiasing knows nothing beyond the crop
        np.testing.assert_allclose(one.image(image)[1:-1, 1:-1].astype(float), wanted, atol=2)
        np.testing.assert_array_equal(one.masks(masks), all_of_it.masks(masks))
        np.testing.assert_array_equal(one.masks(np.asfortranarray(masks)), all_of_it.masks(masks))


def test_aspect_crop_keeps_the_objects_that_fit():
    crop = AspectCrop(0.5, 2)
    assert crop.size_before(100, 150) == (100, 150) and crop.size_before(100, 301) == (100, 200)
    assert crop.size_before(1000, 101) == (202, 101)
    dataset = Lit()
    dataset.add(100, 400, [(10, 120, 40, 160), (50, 200, 95, 290), (0, 380, 20, 400)], [1, 2, -1])
    dataset.add(400, 100, [(10, 20, 40, 60), (350, 20, 390, 60)])
    dataset.add(100, 400, [])
    starts = set()
    for seed in range(30):
        rng = np.random.default_rng(seed)
        keypoints = np.array([[[20, 130, 2]], [[60, 210, 2]], [[10, 390, 2]]], np.float32)
        scene = crop.before(scene_of(dataset, 0, keypoints), rng)
        boxes = extract_bboxes(scene.masks)
        assert scene.image.shape == (100, 200, 3) and scene.masks.shape == (100, 200, 3)
        start = 120 - boxes[0, 1]
        starts.add(start)
        assert boxes[:2].tolist() == [[10, 120 - start, 40, 160 - start], [50, 200 - start, 95, 290 - start]]
        assert scene.keypoints[0, 0].tolist() == [20, 130 - start, 2] and not scene.keypoints[2].any()
        tall = crop.before(scene_of(dataset, 1), rng)  # the objects span 380, the window 200: it starts in 10..100
        assert tall.image.shape == (200, 100, 3) and not tall.masks[:, :, 1].any()
        assert crop.before(scene_of(dataset, 2), rng).image.shape == (100, 200, 3)
        start = load_image_gt(dataset, make_config(USE_MINI_MASK=False), 0, augmentation=crop, rng=rng)
        assert start[2].tolist() == [1, 2] and start[1][7:11].tolist() == [32, 0, 96, 128]
    assert len(starts) > 10 and min(starts) >= 90 and max(starts) <= 120


def test_aspect_crop_decides_the_bucket():
    dataset = Lit()
    dataset.add(100, 400, [(10, 120, 40, 160)])
    dataset.add(100, 200, [(10, 120, 40, 160)])
    config = make_config(IMAGE_RESIZE_MODE="pad64", IMAGE_MIN_DIM=128, IMAGES_PER_GPU=2)
    assert DataLoader(dataset, config).batches_per_pass == 2
    loader = DataLoader(dataset, config, augmentation=AspectCrop(), shuffle=False)
    assert loader.batches_per_pass == 1
    assert loader.batch(0)["input_image"].shape == (2, 128, 256, 3) and not loader.skipped


def test_pasted_objects_lie_on_top():
    dataset = lit()
    below, above = scene_of(dataset, 0), scene_of(dataset, 1)
    stored = below.image.copy()
    scene = paste(below, above, np.array([0, 1]))
    assert scene.class_ids.tolist() == [1, -2, 3, 2] and scene.masks.shape == (100, 160, 4)
    np.testing.assert_array_equal(scene.image[:, :, 0][:, :, None] == [10, 20, 50, 60], scene.masks)
    assert (scene.masks.sum(axis=2) <= 1).all() and np.array_equal(below.image, stored)
    assert scene.masks[:, :, 0].sum() == 30 * 40 - 20 * 30


@pytest.mark.parametrize("mode", ["square", "shortest", "pad64"])
def test_copy_paste_takes_objects_of_the_dataset(mode):
    dataset, counts = lit(), set()
    dataset.add_class("elsewhere", 1, "class 1")
    dataset.add(100, 160, [(0, 0, 90, 90)], source="elsewhere")
    config = make_config(IMAGE_RESIZE_MODE=mode, USE_MINI_MASK=False, IMAGE_MIN_DIM=64, IMAGE_MAX_DIM=192,
                         NUM_CLASSES=dataset.num_classes)
    for seed in range(40):
        image, _, class_ids, boxes, masks = load_image_gt(
            dataset, config, 0, augmentation=CopyPaste(1), rng=np.random.default_rng(seed))
        assert len(class_ids) >= 1 and (class_ids[2:] > 0).all() and set(class_ids) <= {1, -2, 2, 3}
        np.testing.assert_array_equal(boxes, extract_bboxes(masks))
        assert (masks.sum(axis=2) <= 1).all()
        assert image[masks.any(axis=2)].max() < 120  # nothing of the other source
        counts.add(tuple(class_ids.tolist()))
    assert len(counts) >= 4  # nothing (of the empty image), one or the other, both
    with pytest.raises(ValueError, match="CopyPaste needs other images"):
        CopyPaste()(np.zeros((9, 9, 3), np.uint8), np.zeros((9, 9, 0), bool), np.random.default_rng(0))


def test_a_rare_source_finds_its_own_images():
    dataset = Lit()
    for place in (10, 60, 110):
        dataset.add(100, 160, [(10, place, 40, place + 40)])
    for number in range(300):
        dataset.add_image("elsewhere", number, None, height=100, width=160, boxes=[], classes=[], first=0)
    dataset.prepare()
    config = make_config(USE_MINI_MASK=False)
    for seed in range(10):
        rng = np.random.default_rng(seed)
        assert len(load_image_gt(dataset, config, 0, augmentation=CopyPaste(1, flip=0), rng=rng)[2]) == 2


def test_an_image_is_not_pasted_onto_itself():
    dataset = Lit()
    dataset.add(100, 160, [(10, 20, 40, 60)])
    config = make_config(USE_MINI_MASK=False)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        assert len(load_image_gt(dataset, config, 0, augmentation=CopyPaste(1), rng=rng)[2]) == 1


def test_copy_paste_goes_round_broken_images():
    dataset = SometimesBroken()
    dataset.load_shapes(7, 128, 128)
    dataset.prepare()
    loader = DataLoader(dataset, make_config(MAX_GT_INSTANCES=20), augmentation=CopyPaste(1))
    loader.batch(0), loader.batch(1)
    assert set(loader.bad_images) <= {0, 3, 6}
    alone = SometimesBroken()
    alone.load_shapes(2, 128, 128)
    alone.prepare()
    assert len(load_image_gt(alone, make_config(), 1, augmentation=CopyPaste(1), rng=np.random.default_rng(0))[2])


@pytest.mark.parametrize("flip", [HorizontalFlip(1, [(0, 1)]), VerticalFlip(1), Transpose(1), Rotate90(1)])
@pytest.mark.parametrize("size", [(20, 20), (20, 31)])
def test_keypoints_stay_on_their_pixels(flip, size):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*size, 3), np.uint8)
    places = rng.integers(0, 20, (4, 3, 2))
    keypoints = np.concatenate([places + 0.5, rng.integers(0, 3, (4, 3, 1))], axis=2).astype(np.float32)
    keypoints[keypoints[..., 2] == 0] = 0
    scene = Scene(image, np.ones((*size, 4), bool), np.ones(4, np.int32), keypoints)
    for seed in range(5):
        moved = flip.apply(scene, np.random.default_rng(seed))
        swap = [1, 0, 2] if isinstance(flip, HorizontalFlip) else [0, 1, 2]
        for before, after in zip(keypoints[:, swap].reshape(-1, 3), moved.keypoints.reshape(-1, 3), strict=True):
            assert before[2] == after[2]
            (y, x), (new_y, new_x) = before[:2].astype(int), after[:2].astype(int)
            assert before[2] == 0 or np.array_equal(image[y, x], moved.image[new_y, new_x])
    twice = HorizontalFlip(1, [(0, 1)])
    again = twice.apply(twice.apply(scene, rng), rng)
    np.testing.assert_array_equal(again.keypoints, keypoints)
    with pytest.raises(ValueError, match="does not move keypoints"):
        Compose([lambda a, b: (a, b)]).apply(scene, rng)


def test_colours_change_pixels_as_they_say():
    image = np.random.default_rng(0).integers(60, 180, (40, 40, 3), np.uint8)
    scene = Scene(image, np.ones((40, 40, 1), bool), np.ones(1, np.int32))

    def run(augmentation, seed=0):
        result = augmentation.apply(scene, np.random.default_rng(seed))
        assert result.masks is scene.masks and result.image.dtype == np.uint8
        return result.image.astype(int)

    np.testing.assert_array_equal(run(ColorJitter(0, 0, 0, 0)), image)
    np.testing.assert_allclose(run(ColorJitter((1.2, 1.2), 0, 0, 0)), image * 1.2, atol=1)
    grey = image @ [0.299, 0.587, 0.114]
    np.testing.assert_allclose(run(ColorJitter(0, 0, (0, 0), 0)), np.repeat(grey[..., None], 3, 2), atol=1)
    np.testing.assert_allclose(run(ColorJitter(0, (0.5, 0.5), 0, 0)), 0.5 * image + 0.5 * grey.mean(), atol=1.5)
    assert not np.array_equal(run(ColorJitter(0, 0, 0, 0.1)), image)
    value = run(HSVJitter(0, 0, 0.3)).max(axis=2) / image.max(axis=2)
    assert np.ptp(value) < 0.03 and abs(value.mean() - 1) > 0.01
    assert run(Blur(1)).std() < image.std() * 0.8
    noise = run(Noise(5, 5)) - image
    assert abs(noise.std() - 5) < 0.3 and abs(noise.mean()) < 0.3
    np.testing.assert_array_equal(run(Noise(5, 5, probability=0)), image)
    assert len({run(ColorJitter(), seed).tobytes() for seed in range(5)}) == 5
    for bad in ({"brightness": (2, 1)}, {"hue": 0.6}, {"probability": -1}):
        with pytest.raises(ValueError, match=f"ColorJitter: {next(iter(bad))}"):
            ColorJitter(**bad)


def test_lists_from_data():
    made = build(RECIPE)
    assert [type(item).__name__ for item in made.augmentations] == [
        "HorizontalFlip", "ScaleJitter", "Affine", "CopyPaste", "OneOf"]
    assert isinstance(made.augmentations[4].augmentations[1], HSVJitter) and build(None) is None
    assert build([{"Noise": None}]).augmentations[0].high == 15
    for name in catalogue.__all__:
        kind = getattr(catalogue, name)
        if isinstance(kind, type) and issubclass(kind, Augmentation) and kind not in (Augmentation, Compose, OneOf):
            assert isinstance(build([name]).augmentations[0], kind)
    for specs, words in ((["Flip"], "'Flip', expected one of"), (["np"], "'np'"), (["Augmentation"], "'Augmentation'"),
                         (["ColourJitter"], "nearest: 'ColorJitter'"), ([{"Noise": {"hi": 1}}], "Noise.*'hi'"),
                         ([{"a": {}, "b": {}}], "class name"), ([{"Noise": 3}], "class name"), ("Noise", "a list"),
                         ({"Noise": {"low": 2}}, "a list"), ([{"Compose": {"augmentations": 3}}], "found 3, .*a list"),
                         ([{"OneOf": {"augmentations": None}}], "found None, .*a list")):
        with pytest.raises(ValueError, match=f"AUGMENTATION: .*{words}"):
            build(specs)
    with pytest.raises(ValueError, match="ScaleJitter acts before"):
        OneOf([ScaleJitter()])
    with pytest.raises(ValueError, match="OneOf: ScaleJitter acts before"):
        OneOf([Compose([HorizontalFlip(), ScaleJitter()])])  # would never run
    OneOf([Compose([HorizontalFlip()]), OneOf([Noise()])])


@pytest.mark.parametrize("kind, argument, value", [
    (Affine, "translate", (0.1, 0.3)), (Affine, "min_visible", 20), (Affine, "perspective", -0.1),
    (HSVJitter, "hue", (0.01, 0.5)), (HSVJitter, "value", -0.1), (CopyPaste, "max_instances", 0),
    (CopyPaste, "max_instances", -1), (CopyPaste, "max_instances", 2.5), (HorizontalFlip, "probability", None)])
def test_arguments_that_cannot_be_are_refused(kind, argument, value):
    with pytest.raises(ValueError, match=f"{kind.__name__}: {argument}: found"):
        kind(**{argument: value})


def test_the_config_holds_lists(tmp_path):
    config = make_config(AUGMENTATION=RECIPE, TRAIN_SCALES=[96, 128])
    config.validate()
    config.to_yaml(tmp_path / "c.yaml")
    assert Config.from_yaml(tmp_path / "c.yaml").AUGMENTATION == RECIPE
    for bad in ("Noise", [1], [{"Noise": 3}], [{"a": {}, "b": {}}]):
        with pytest.raises(ValueError, match="AUGMENTATION: found"):
            make_config(AUGMENTATION=bad).validate()


@pytest.mark.parametrize("mini", [True, False])
def test_samples_depend_on_seed_pass_and_image_only(mini):
    dataset = ShapesDataset()
    for start, size in enumerate([(100, 150), (150, 100), (128, 128), (64, 200), (90, 90), (300, 200)]):
        dataset.load_shapes(1, *size, start=start)
    dataset.prepare()
    config = make_config(AUGMENTATION=[*RECIPE, {"AspectCrop": {"low": 0.8, "high": 1.3}}], TRAIN_SCALES=[64, 128],
                         MAX_GT_INSTANCES=12, IMAGES_PER_GPU=2, USE_MINI_MASK=mini)
    loader = DataLoader(dataset, config, training=True)
    steps = list(range(8))
    batches = [loader.batch(step) for step in steps]
    assert not loader.bad_images
    with DataLoader(dataset, config, training=True, workers=2) as other:
        assert other.backend == "process"
        for one, two in zip(batches, other.stream(0, 8), strict=True):
            for name, array in one.items():
                np.testing.assert_array_equal(array, two[name], err_msg=name)
    halves = [DataLoader(dataset, config, training=True, shard=(index, 2)).batch(3) for index in range(2)]
    for name, array in batches[3].items():
        np.testing.assert_array_equal(np.concatenate([half[name] for half in halves]), array, err_msg=name)
    other_seed = DataLoader(dataset, config, training=True, seed=1).batch(0)
    assert not np.array_equal(other_seed["input_gt_boxes"], batches[0]["input_gt_boxes"])
    later = DataLoader(dataset, config, training=True, shuffle=False)
    assert not np.array_equal(later.batch(0)["input_gt_boxes"], later.batch(3)["input_gt_boxes"])
    for batch in batches:
        valid = batch["input_gt_class_ids"] != 0
        boxes = batch["input_gt_boxes"][valid]
        assert (boxes[:, 2:] > boxes[:, :2]).all() and (boxes >= 0).all()
        assert (boxes <= np.tile(batch["input_image"].shape[1:3], 2)).all()
        if not mini:
            for row, ids in enumerate(valid):
                masks = batch["input_gt_masks"][row][:, :, ids]
                np.testing.assert_array_equal(extract_bboxes(masks), batch["input_gt_boxes"][row][ids])
    plain = DataLoader(dataset, config, shuffle=False).batch(0)["input_image"]
    assert plain.shape == (2, 128, 128, 3), "without training=True the recipe is not used"
