"""COCO evaluation: published numbers, zero detections, any dataset, a model's detections."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as rle_tools
from pycocotools.coco import COCO

from kmrcnn.config import Config
from kmrcnn.data.dataset import Dataset
from kmrcnn.evaluation.coco import build_coco_results, coco_stats, dataset_to_coco, encode_masks, evaluate_coco
from kmrcnn.evaluation.coco_stats import STAT_NAMES

pytestmark = pytest.mark.once


class Boxes(Dataset):
    """Three images of rectangles; classes 0 and 9 of the source "boxes"; the last image is empty."""

    LAYOUT = [[(0, 4, 4, 24, 30), (9, 30, 30, 60, 50)], [(9, 10, 10, 50, 60), (-9, 0, 0, 8, 64)], []]

    def __init__(self, *sources):
        super().__init__()
        for source in sources or ("boxes",):
            self.add_class(source, 0, "zero")
            self.add_class(source, 9, "nine")
        for index in range(3):
            self.add_image((sources or ("boxes",))[index % max(len(sources), 1)], image_id=f"name-{index}", path=None)
        self.prepare()

    def load_image(self, image_id):
        return np.full((64, 64, 3), 10 * int(image_id), np.uint8)

    def load_mask(self, image_id):
        layout, source = self.LAYOUT[image_id], self.image_info[image_id]["source"]
        masks = np.zeros((64, 64, len(layout)), bool)
        for index, (_, y1, x1, y2, x2) in enumerate(layout):
            masks[y1:y2, x1:x2, index] = True
        ids = [self.map_source_class_id(f"{source}.{abs(row[0])}") * (-1 if row[0] < 0 else 1) for row in layout]
        return masks, np.array(ids, np.int32)


class Oracle:
    """Detects what `load_mask` says, found by the image's grey value; counts the images of each stream."""

    def __init__(self, dataset, ahead=2):
        self.dataset, self.calls, self.ahead = dataset, [], ahead
        self.config = Config()

    def detect_stream(self, images, *, masks):
        assert masks == "rle"
        images, self.calls = iter(images), [*self.calls, 0]
        while part := list(itertools.islice(images, self.ahead)):
            self.calls[-1] += len(part)
            yield from (self._result(int(image[0, 0, 0]) // 10) for image in part)

    def _result(self, image_id):
        masks, class_ids = self.dataset.load_mask(image_id)
        kept = class_ids > 0
        boxes = [[row[1], row[2], row[3], row[4]] for row in self.dataset.LAYOUT[image_id]]
        rles = [rle_tools.encode(np.asfortranarray(mask.view(np.uint8))) for mask in np.moveaxis(masks, 2, 0)[kept]]
        return {"rois": np.array(boxes, np.int32).reshape(-1, 4)[kept], "class_ids": class_ids[kept],
                "scores": np.full(kept.sum(), 0.9, np.float32), "masks": rles}


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_published_numbers(shared_data, iou_type):
    """100 val2014 images with detections whose 12 numbers are published with pycocotools."""
    folder = shared_data("cocoeval_ref")
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(folder / "instances_val2014_100.json"))
    results = json.loads((folder / f"instances_val2014_fake{iou_type}100_results.json").read_text())
    expected = json.loads((folder / "expected.json").read_text())[iou_type]
    stats = coco_stats(truth, results, iou_type)
    np.testing.assert_allclose(stats.stats, expected, rtol=0, atol=1e-9)
    measured = [row.ap for row in stats.classes if row.instances]
    np.testing.assert_allclose(np.mean(measured), stats.ap, atol=1e-9)


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_no_detections_give_zero(iou_type):
    stats = coco_stats(dataset_to_coco(Boxes()), [], iou_type)
    assert stats.ap == 0
    assert [row.ap for row in stats.classes] == [0, 0]
    assert set(stats.to_dict()) == set(STAT_NAMES)


def test_no_images_and_no_ground_truth_give_minus_one():
    dataset = Boxes()
    for image_ids in ([], [2]):
        assert coco_stats(dataset_to_coco(dataset, image_ids), [], "segm").ap == -1


def test_stats_refuse_what_they_cannot_score():
    truth = dataset_to_coco(Boxes())
    with pytest.raises(ValueError, match="iou_type: found 'box'"):
        coco_stats(truth, [], "box")
    with pytest.raises(ValueError, match="result for image 'other'"):
        coco_stats(truth, [{"image_id": "other"}], "bbox")
    with pytest.raises(ValueError, match="has no 'segmentation'"):
        coco_stats(truth, [{"image_id": "name-0", "category_id": 0, "score": 1, "bbox": [0, 0, 1, 1]}], "segm")


def test_dataset_to_coco():
    truth = dataset_to_coco(Boxes())
    assert sorted(truth.imgs) == ["name-0", "name-1", "name-2"]
    assert {key: value["name"] for key, value in truth.cats.items()} == {0: "zero", 9: "nine"}
    first, crowd = truth.anns[1], truth.anns[4]
    assert (first["bbox"], first["area"], first["iscrowd"]) == ([4, 4, 26, 20], 520, 0)
    assert (crowd["category_id"], crowd["iscrowd"]) == (9, 1)


def test_several_sources_use_internal_ids():
    dataset = Boxes("one", "two")
    truth = dataset_to_coco(dataset)
    assert sorted(truth.imgs) == [0, 1, 2]
    assert sorted(truth.cats) == [1, 2, 3, 4]
    results = evaluate_coco(Oracle(dataset), dataset, eval_type="both", verbose=0)
    assert results["bbox"].ap == results["segm"].ap == pytest.approx(1)


@pytest.mark.parametrize("ids", [[7, "a", 0], [(0, 1), (0, 2), (1, 1)], [Path("c"), Path("a"), Path("b")]])
def test_image_ids_of_any_kind_are_scored_and_written(ids, tmp_path):
    dataset = Boxes()
    for info, key in zip(dataset.image_info, ids, strict=True):
        info["id"] = key
    results = evaluate_coco(Oracle(dataset), dataset, eval_type="both", results_path=tmp_path / "r.json", verbose=0)
    assert results["segm"].ap == pytest.approx(1) and results["bbox"].ap == pytest.approx(1)
    assert {row["image_id"] for row in json.loads((tmp_path / "r.json").read_text())} == {0, 1}


def test_annotation_id_zero_counts_as_a_match():
    dataset = Boxes()
    truth = dataset_to_coco(dataset)
    rows = [{**row, "id": index} for index, row in enumerate(truth.dataset["annotations"])]
    zero = COCO()
    zero.dataset = {**truth.dataset, "annotations": rows}
    with contextlib.redirect_stdout(io.StringIO()):
        zero.createIndex()
    assert evaluate_coco(Oracle(dataset), dataset, zero, "segm", verbose=0)["segm"].ap == pytest.approx(1)


@pytest.mark.parametrize("given", [True, False])
def test_evaluate_a_perfect_model(given, tmp_path, capsys):
    dataset = Boxes()
    model = Oracle(dataset)
    truth = dataset_to_coco(dataset) if given else None
    results = evaluate_coco(model, dataset, truth, "both", results_path=tmp_path / "results.json")
    assert model.calls == [3]
    for kind in ("bbox", "segm"):
        assert results[kind].ap == pytest.approx(1)
        assert [(row.name, row.instances) for row in results[kind].classes] == [("zero", 1), ("nine", 2)]
    rows = json.loads((tmp_path / "results.json").read_text())
    assert rows == results.detections
    assert rows[0]["image_id"] == "name-0"
    assert rows[0]["bbox"] == [4, 4, 26, 20]
    text = capsys.readouterr().out
    assert text.count("Average Precision") == 12
    assert "Prediction time" in text


def test_limit_image_ids_and_wrong_type():
    dataset = Boxes()
    model = Oracle(dataset)
    evaluate_coco(model, dataset, limit=1, verbose=0)
    evaluate_coco(model, dataset, image_ids=[1, 2], verbose=0)
    assert model.calls == [1, 2]
    with pytest.raises(ValueError, match="eval_type: found 'mask'"):
        evaluate_coco(model, dataset, eval_type="mask")


def test_unreadable_image_counts_as_undetected(caplog):
    class Broken(Boxes):
        def load_image(self, image_id):
            if image_id == 1:
                raise OSError("cannot read")
            return super().load_image(image_id)

    dataset = Broken()
    results = evaluate_coco(Oracle(dataset), dataset, eval_type="segm", verbose=0)
    assert results.skipped == [1]
    assert results["segm"].ap == pytest.approx((1 + 0.5049504950) / 2)
    assert "image 1" in caplog.text


def test_unreadable_size_or_mask_ends_nothing(caplog):
    class Broken(Boxes):
        def image_size(self, image_id):
            if image_id == 0:
                raise OSError("no such file")
            return 64, 64

        def load_mask(self, image_id):
            return {}["lost"] if image_id == 1 else super().load_mask(image_id)

    dataset = Broken()
    model = Oracle(dataset)
    model.config.IMAGE_RESIZE_MODE = "none"
    results = evaluate_coco(model, dataset, eval_type="both", verbose=0)
    assert results["bbox"].ap == results["segm"].ap == pytest.approx(1)
    assert "image 1 is left out of the ground truth: KeyError: 'lost'" in caplog.text


def test_annotations_without_an_outline_are_left_out(caplog):
    dataset = Boxes()
    rows = dataset_to_coco(dataset).dataset
    broken = {**rows["annotations"][0], "id": 99, "segmentation": []}
    truth = COCO()
    truth.dataset = {**rows, "annotations": [broken, *rows["annotations"]]}
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
    assert evaluate_coco(Oracle(dataset), dataset, truth, "segm", verbose=0)["segm"].ap == pytest.approx(1)
    assert "1 annotations of the ground truth have no segmentation" in caplog.text


def test_masks_of_any_number_type_are_encoded():
    masks = np.array([[[0.0, 255.0], [0.7, 1.0]]])
    for kind in (masks, np.ceil(masks).astype(np.uint8), masks > 0):
        assert [rle_tools.area(rle) for rle in encode_masks(kind)] == [1, 2]


def test_encodings_are_taken_as_they_are():
    masks = Boxes().load_mask(0)[0]
    assert encode_masks(rle_tools.encode(np.asfortranarray(masks.view(np.uint8)))) == encode_masks(masks)
    assert encode_masks([]) == []


def test_images_are_loaded_as_the_model_takes_them():
    """Not all of them are in memory at a time."""
    dataset, loaded = Boxes(), []

    class Watching(Oracle):
        def _result(self, image_id):
            loaded.append((image_id, len(seen)))
            return super()._result(image_id)

    seen, load = [], dataset.load_image
    dataset.load_image = lambda image_id: (seen.append(image_id), load(image_id))[1]
    results = evaluate_coco(Watching(dataset, ahead=1), dataset, dataset_to_coco(Boxes()), verbose=0)
    assert loaded == [(0, 1), (1, 2), (2, 3)] and results.seconds_per_image > 0


def test_build_coco_results_is_plain_json():
    dataset = Boxes()
    masks, class_ids = dataset.load_mask(0)
    rois = np.array([[4, 4, 24, 30], [30, 30, 60, 50]], np.int32)
    rows = build_coco_results(dataset, ["name-0"], rois, class_ids, np.array([0.5, 0.25], np.float32), masks)
    assert json.loads(json.dumps(rows)) == rows
    assert [row["category_id"] for row in rows] == [0, 9]
    assert rows[1]["bbox"] == [30.0, 30.0, 20.0, 30.0]
    assert build_coco_results(dataset, ["name-0"], None, [], [], np.zeros((64, 64, 0))) == []
    assert build_coco_results(dataset, ["name-0"], np.zeros((0, 4)), [], [], np.zeros((64, 64, 0))) == []
