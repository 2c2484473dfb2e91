"""Every command of every sample runs; what it should leave behind is there."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace

import numpy as np
import pytest

from kmrcnn import Config
from tests.samples.conftest import IMAGE_SIZE, TINY, assert_picture, draw, write_coco

# The samples hold no backend code; what they call is tested on every backend elsewhere.
pytestmark = pytest.mark.once


@pytest.fixture
def coco_folder(samples, tmp_path):
    from coco import CLASS_NAMES

    categories = [{"id": number, "name": name} for number, name in enumerate(CLASS_NAMES) if number]
    write_coco(tmp_path / "coco", "train2017", "instances_train2017.json", categories, 4)
    write_coco(tmp_path / "coco", "val2017", "instances_val2017.json", categories, 2)
    return tmp_path / "coco"


def test_shapes_trains_evaluates_and_draws(run, tmp_path, capsys):
    run("shapes", "--epochs=1", "--steps=1", "--eval-images=2", "--pictures=1", "--out", tmp_path / "out",
        "--logs", tmp_path / "logs")
    printed = capsys.readouterr().out
    assert "Training time" in printed and "Starting at epoch 0. LR=0.001" in printed
    assert printed.count("Average Precision") == 12  # 6 lines of AP for boxes, 6 for masks
    assert_picture(tmp_path / "out" / "shapes_000.png")


def test_coco_run_remembers_and_resumes(run, coco_folder, tmp_path, capsys, monkeypatch):
    logs = f"--logs={tmp_path / 'logs'}"
    run("coco", "train", "--dataset=coco", "--year=2017", "--model=none", "--images=2", "--epochs=1", logs,
        *TINY)
    folder, = (tmp_path / "logs").iterdir()
    assert (folder / "mask_rcnn_coco_0001.h5").exists()

    capsys.readouterr()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    run("coco", "evaluate", "--model=last", logs)
    printed = capsys.readouterr().out
    assert printed.count("Average Precision") == 12
    assert "IMAGE_MAX_DIM                  64" in printed

    run("coco", "train", "--model=last", "--epochs=2", logs)
    assert "Starting at epoch 1" in capsys.readouterr().out
    assert [run_folder.name for run_folder in (tmp_path / "logs").iterdir()] == [folder.name]
    assert (folder / "mask_rcnn_coco_0002.h5").exists()


def test_coco_without_dataset_says_so(run, capsys):
    with pytest.raises(SystemExit):
        run("coco", "evaluate", "--model=none")
    assert "--dataset is needed" in capsys.readouterr().err


@pytest.mark.parametrize(("sample", "arguments", "message"), [
    ("coco", ["--model=none", "IMAGE_PER_GPU=1"], "settings: unknown setting IMAGE_PER_GPU: did you mean IMAGES_PER"),
    ("coco", ["--model=none", "IMAGE_MAX_DIM=x"], "settings: IMAGE_MAX_DIM: found 'x', expected an integer"),
    ("coco", ["--model=none", "--recipe=1x", "OPTIMIZER=x"], "settings: OPTIMIZER: found 'x', expected one of"),
    ("coco", ["--model=none", "--recipe=4x"], "--recipe: 4x: no such recipe or file"),
    ("coco", ["--model=none", *TINY], r"--dataset=\. --year=2014: .*train2014.json: No such file"),
    ("coco", ["--model=broken.h5", *TINY], "--model=broken.h5: broken.h5 is no weight file of a known format"),
    ("nucleus", ["--model=none", *TINY], r"--dataset=\. --subset=train: stage1_train not found"),
    ("balloon", ["--model=none", *TINY], r"--dataset=\.: train.via_region_data.json is not json"),
])
def test_a_wrong_argument_ends_with_a_sentence(run, tmp_path, sample, arguments, message):
    (tmp_path / "broken.h5").write_text("no weights")
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "via_region_data.json").write_text("{")
    with pytest.raises(SystemExit, match=message):
        run(sample, "train", "--dataset=.", f"--logs={tmp_path / 'logs'}", *arguments)


def test_settings_of_shapes_are_checked_before_training(run, tmp_path):
    with pytest.raises(SystemExit, match="settings: .*unknown setting NOTHING"):
        run("shapes", "NOTHING=1", f"--logs={tmp_path / 'logs'}")
    with pytest.raises(SystemExit, match="settings: OPTIMIZER: found 'x'"):
        run("shapes", "OPTIMIZER=x", f"--logs={tmp_path / 'logs'}")


@pytest.mark.parametrize(("arguments", "message"), [
    (["coco", "train", "--model=none", "--dataset=nowhere"], "--dataset: no such folder: nowhere"),
    (["coco", "train", "--model=none", "--dataset=.", "--devices=0"], "--devices: found '0', expected an integer"),
    (["coco", "train", "--model=none", "--dataset=.", "--epochs=0"], "--epochs: found '0', expected an integer"),
    (["nucleus", "train", "--recipe=nuclei", "--dataset=nowhere"], "--dataset: no such folder: nowhere"),
    (["balloon", "train", "--model=none", "--dataset=nowhere"], "--dataset: no such folder: nowhere"),
    (["shapes", "--steps=-3"], "--steps: found '-3', expected an integer of at least 1"),
])
def test_a_wrong_number_or_folder_is_refused_at_once(run, capsys, arguments, message):
    with pytest.raises(SystemExit) as error:
        run(*arguments)
    assert error.value.code == 2
    assert message in capsys.readouterr().err


def test_an_interrupt_ends_without_a_traceback(samples):
    import argparse

    import common
    from coco import CocoConfig

    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as error:
        common.start(interrupted, CocoConfig(), argparse.Namespace(model="none"))
    assert error.value.code == 130


def test_a_picture_that_cannot_be_read_is_named(run, tmp_path):
    with pytest.raises(SystemExit, match="--image: nowhere.png: No such file"):
        run("balloon", "splash", "--model=none", "--image=nowhere.png", f"--logs={tmp_path / 'logs'}", *TINY)


def test_coco_stages(samples):
    import coco

    class Args:
        epochs = model = layers = lr = stages = None

    assert coco.stages(Args, coco.CocoConfig()) == [("heads", 40, 1e-3), ("4+", 120, 1e-3), ("all", 160, 1e-4)]
    Args.stages = [["3+", 36, None]]
    assert coco.stages(Args, coco.CocoConfig()) == [("3+", 36, None)]


def test_coco_class_names(samples):
    import coco

    assert len(coco.CLASS_NAMES) == 81
    assert coco.CLASS_NAMES[1] == "person" and coco.CLASS_NAMES[13] == "parking meter"
    assert coco.CLASS_NAMES[80] == "toothbrush" and all(name == name.strip() for name in coco.CLASS_NAMES)


def test_coco_learning_rate_of_a_recipe(samples):
    import argparse

    import coco

    args = argparse.Namespace(lr=0.5, epochs=None, model="none", stages=[["heads", 2, None], ["all", 4, 0.1]])
    assert coco.stages(args, coco.CocoConfig()) == [("heads", 2, 0.5), ("all", 4, 0.1)]
    args.lr = None
    assert coco.stages(args, coco.CocoConfig())[0] == ("heads", 2, None)


def test_nucleus_stages_end_with_the_last_epoch(samples):
    import common

    stages = [["heads", 20, None], ["all", 40, 0.1]]
    assert common.until(stages, None) == stages
    assert common.until(stages, 5) == [["heads", 5, None]]
    assert common.until(stages, 20) == [["heads", 20, None]]
    assert common.until(stages, 30) == [["heads", 20, None], ["all", 30, 0.1]]
    assert common.until(stages, 60) == [["heads", 20, None], ["all", 60, 0.1]]
    assert stages == [["heads", 20, None], ["all", 40, 0.1]]


def test_nucleus_train_evaluate_detect(run, tmp_path, capsys, monkeypatch):
    for subset in ("train", "val"):
        write_coco(tmp_path / "data", subset, f"instances_{subset}.json", [{"id": 1, "name": "nucleus"}], 3)
    logs = f"--logs={tmp_path / 'logs'}"
    run("nucleus", "train", f"--dataset={tmp_path / 'data'}", "--model=none", "--epochs=1", logs, *TINY,
        "IMAGE_RESIZE_MODE=square")
    capsys.readouterr()
    run("nucleus", "evaluate", "--model=last", logs)
    assert capsys.readouterr().out.count("Average Precision") == 12

    import common

    monkeypatch.setattr(common, "ROOT", tmp_path)
    run("nucleus", "detect", "--model=last", "--subset=val", logs)
    out, = (tmp_path / "results" / "nucleus").iterdir()
    lines = (out / "submit.csv").read_text().splitlines()
    assert lines[0] == "ImageId,EncodedPixels" and len(lines) >= 4
    assert len(list(out.glob("*.png"))) == 3


def test_nucleus_epoch_of_a_recipe_may_be_one_pass(run, tmp_path):
    for subset in ("train", "val"):
        write_coco(tmp_path / "data", subset, f"instances_{subset}.json", [{"id": 1, "name": "nucleus"}], 4)
    recipe = tmp_path / "own.yaml"
    recipe.write_text("_BASE_: nuclei\none_pass: true\nconfig: {IMAGE_RESIZE_MODE: square}\n", encoding="utf-8")
    tiny = [item for item in TINY if "STEPS_PER_EPOCH" not in item and "IMAGES_PER_GPU" not in item]
    run("nucleus", "train", f"--dataset={tmp_path / 'data'}", f"--recipe={recipe}", "--epochs=1",
        f"--logs={tmp_path / 'logs'}", "IMAGES_PER_GPU=3", *tiny)
    folder, = (tmp_path / "logs").iterdir()
    assert Config.from_yaml(folder / "config.yaml").STEPS_PER_EPOCH == 2  # 4 images in batches of 3


def test_nucleus_run_lengths(samples):
    import nucleus

    mask = np.zeros((3, 4), bool)
    mask[1:, 0] = mask[0, 1] = True  # one run over the end of a column
    mask[2, 3] = True
    assert nucleus.rle_encode(mask) == "2 3 12 1"
    np.testing.assert_array_equal(nucleus.rle_decode("2 3 12 1", (3, 4)), mask)
    assert nucleus.rle_encode(np.zeros((2, 2), bool)) == ""
    np.testing.assert_array_equal(nucleus.rle_decode("", (2, 2)), np.zeros((2, 2), bool))


def test_nucleus_best_score_keeps_a_shared_pixel(samples):
    import nucleus

    masks = np.ones((1, 3, 3), bool)
    masks[0, 2, 0] = masks[0, 0, 1] = False  # 0: pixels 1-2, 1: pixels 2-3, 2: all
    assert nucleus.encode_masks(masks, np.array([0.5, 0.9, 0.1])) == ["2 2", "1 1"]
    assert nucleus.encode_masks(np.zeros((1, 3, 0), bool), np.zeros(0)) == [""]


def write_balloons(folder):
    """One image in train and one in val, with VIA's annotations."""
    regions = {"0": {"shape_attributes": {"name": "polygon", "all_points_x": [10, 50, 50, 10],
                                          "all_points_y": [8, 8, 40, 40]}, "region_attributes": {}}}
    for subset in ("train", "val"):
        draw(folder / subset / "a.png", 1)
        (folder / subset / "via_region_data.json").write_text(json.dumps(
            {"a.png1": {"filename": "a.png", "size": 1, "regions": regions, "file_attributes": {}}}))


def test_balloon_train_and_splash(run, tmp_path, capsys):
    write_balloons(tmp_path / "data")
    logs = f"--logs={tmp_path / 'logs'}"
    with pytest.raises(SystemExit, match="training: layers: no layer with weights matches 'head'; use heads, 5"):
        run("balloon", "train", f"--dataset={tmp_path / 'data'}", "--model=none", "--layers=head", logs, *TINY)
    run("balloon", "train", f"--dataset={tmp_path / 'data'}", "--model=none", "--epochs=1", logs, *TINY)
    run("balloon", "splash", "--model=last", f"--image={tmp_path / 'data' / 'val' / 'a.png'}", logs)
    picture, = tmp_path.glob("splash_*.png")
    assert_picture(picture)

    out = tmp_path / "found"
    (tmp_path / "data" / "val" / "0.png").write_bytes(b"not an image")
    run("demo", tmp_path / "data" / "val", "--model=last", "--name=balloon", f"--out={out}", logs)
    assert_picture(out / "a_detections.png")
    assert "0.png: left out: cannot identify image file" in capsys.readouterr().out


def test_color_splash_keeps_colour_inside_masks_only(samples):
    import balloon

    image = np.array([[[200, 10, 10], [10, 200, 10]]], np.uint8)
    result = balloon.color_splash(image, np.array([[[True, False], [False, False]]]))
    np.testing.assert_array_equal(result[0, 0], image[0, 0])
    assert len(set(result[0, 1].tolist())) == 1
    assert (balloon.color_splash(image, np.zeros((1, 2, 0), bool)).std(axis=-1) == 0).all()


@pytest.mark.parametrize("size, expected", [(IMAGE_SIZE, IMAGE_SIZE), ((47, 63), (48, 64))])
def test_video_goes_in_and_out(samples, tmp_path, size, expected):
    pytest.importorskip("imageio_ffmpeg", reason="video is an extra: pip install 'kmrcnn[video]'")
    import common

    frames = np.random.default_rng(0).integers(0, 255, (4, *size, 3), np.uint8)
    with common.video_writer(tmp_path / "a.mp4", 10.0) as video:
        for frame in frames:
            video.append_data(frame)
    fps, read = common.video_reader(tmp_path / "a.mp4")
    read = list(read)
    assert fps == 10.0 and len(read) == 4 and read[0].shape == (*expected, 3)


def test_video_without_its_packages_says_what_to_install(samples, monkeypatch, tmp_path):
    import sys

    import common

    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(SystemExit, match=r"kmrcnn\[video\]"):
        common.video_reader(tmp_path / "a.mp4")


@pytest.fixture
def published(samples, monkeypatch, tmp_path):
    """published(classes, **facts) puts a tiny file of so many classes, called "tiny", into the catalogue."""
    import common
    from coco import CocoConfig

    from kmrcnn import MaskRCNN
    from kmrcnn.importers import catalogue

    monkeypatch.setattr(common, "WEIGHTS", tmp_path / "weights")

    def add(classes: int, **facts) -> None:
        config = CocoConfig()
        config.override([*TINY, f"NUM_CLASSES={classes}", "DETECTION_MIN_CONFIDENCE=0"])
        (tmp_path / "weights").mkdir()
        MaskRCNN("inference", config, tmp_path).save_weights(tmp_path / "weights" / "tiny.h5")
        keys = [item.partition("=")[0] for item in TINY]
        values = {"name": "tiny", "file": "tiny.h5", "kind": "detector", "url": None, "config": {
            "NUM_CLASSES": classes, **{key: getattr(config, key) for key in keys}}, **facts}
        entry = replace(catalogue.find("coco"), **values)
        monkeypatch.setattr(catalogue, "files", lambda: {"tiny": entry})

    return add


@pytest.mark.parametrize("classes, kept", [(81, 81), (91, 81), (4, 4)])
def test_demo_takes_the_name_of_a_published_file(run, published, tmp_path, monkeypatch, classes, kept):
    import common

    published(classes)
    models = []
    build = common.build
    monkeypatch.setattr(common, "build", lambda *arguments: models.append(build(*arguments)) or models[0])
    draw(tmp_path / "a.png", 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # nothing may be left at random
        run("demo", tmp_path / "a.png", "--model=TINY", f"--out={tmp_path / 'found'}", "--min-confidence=0")
    assert models[0].config.NUM_CLASSES == kept and models[0].config.BACKBONE == "resnet18"
    assert (tmp_path / "found" / "a_detections.png").exists()


def test_torchvisions_classes_are_taken_by_category_id(samples):
    import common

    assert len(common.CATEGORY_IDS) == 81
    assert [common.CATEGORY_IDS[place] for place in (0, 1, 11, 12, 80)] == [0, 1, 11, 13, 90]  # stop sign is 13


def test_balloon_starts_from_a_published_file_of_other_classes(run, published, tmp_path):
    write_balloons(tmp_path / "data")
    published(81)
    logs = f"--logs={tmp_path / 'logs'}"
    run("balloon", "train", f"--dataset={tmp_path / 'data'}", "--model=tiny", "--epochs=1", logs, *TINY)
    assert len(list((tmp_path / "logs").glob("balloon*/mask_rcnn_balloon_0001.h5"))) == 1


def test_imagenet_is_the_classifier_of_the_backbone(samples, published, monkeypatch, tmp_path):
    import argparse

    import common
    from coco import CocoConfig

    published(81)
    config = CocoConfig()
    config.override(TINY)
    arguments = argparse.Namespace(model="imagenet", logs=str(tmp_path))
    with pytest.raises(ValueError, match="BACKBONE=resnet18: no ImageNet weights"):
        common.build("training", config, arguments, None)
    monkeypatch.undo()
    monkeypatch.setattr(common, "WEIGHTS", tmp_path / "none")
    monkeypatch.setattr("kmrcnn.importers.catalogue.download", _refuse)
    config.BACKBONE = "resnet50"
    with pytest.raises(SystemExit, match="keras_resnet50: no network.*fetch https://.*put it at .*none/resnet50"):
        common.build("training", config, arguments, None)


def _refuse(*arguments, **more):
    from kmrcnn.data.download import DownloadError

    raise DownloadError("no network")


def test_an_unknown_name_is_neither_a_file_nor_published(run, tmp_path):
    with pytest.raises(SystemExit, match="no such file: detectron2_mask_rcnn_R50.*did you mean"):
        run("demo", tmp_path, "--model=detectron2_mask_rcnn_R50")


def test_last_without_a_run_says_so(run, tmp_path):
    with pytest.raises(SystemExit, match="no run of 'coco'"):
        run("coco", "evaluate", "--model=last", f"--logs={tmp_path}")
    with pytest.raises(SystemExit, match="no such file"):
        run("demo", tmp_path, f"--model={tmp_path / 'none.h5'}")


def test_coco_share_found_counts_large_instances(run, coco_folder):
    import coco
    from pycocotools.coco import COCO

    truth = COCO(str(coco_folder / "annotations" / "instances_train2017.json"))
    masks = {number: truth.annToRLE(row) for number, row in truth.anns.items()}
    detection = {"image_id": 1, "category_id": 1, "score": 0.9, "bbox": [10, 8, 40, 32], "segmentation": masks[1]}
    # Three instances of 1280 pixels: one found, one missed, one found as another class.
    other = {**detection, "image_id": 2, "category_id": 2, "segmentation": masks[2]}
    assert coco.share_found(truth, [detection, other], [1, 2, 3]) == pytest.approx(1 / 3)
