"""Confusion matrix: matches across classes, by hand."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools.coco import COCO

from kmrcnn.evaluation.coco_stats import coco_stats, index_coco
from kmrcnn.evaluation.confusion import confusion_matrix

pytestmark = pytest.mark.once


def _coco(*annotations):
    frame = COCO()
    frame.dataset = {"images": [{"id": 1, "height": 100, "width": 100}, {"id": 2, "height": 100, "width": 100}],
                     "categories": [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}], "annotations": []}
    return index_coco(frame, [{"image_id": 1, "category_id": category, "bbox": list(box), "area": box[2] * box[3],
                               "iscrowd": crowd} for category, box, crowd in annotations])


def _found(category, box, score=0.9, image_id=1):
    return {"image_id": image_id, "category_id": category, "bbox": list(box), "score": score}


def test_a_matrix_by_hand():
    coco = _coco((3, (0, 0, 10, 10), 0), (7, (20, 0, 10, 10), 0), (7, (40, 0, 10, 10), 0), (3, (60, 0, 30, 30), 1))
    found = [_found(3, (0, 0, 10, 10)),  # a dog
             _found(3, (0, 0, 10, 9), 0.8),  # the same dog again
             _found(3, (20, 0, 10, 9)),  # a cat taken for a dog
             _found(7, (40, 0, 10, 4)),  # too little of a cat
             _found(7, (62, 2, 5, 5)),  # in the crowd
             _found(7, (40, 0, 10, 10), 0.4),  # not sure enough
             _found(7, (0, 0, 10, 10), image_id=2)]
    np.testing.assert_array_equal(confusion_matrix(coco, found), [[1, 0, 0], [1, 0, 1], [1, 2, 0]])
    np.testing.assert_array_equal(confusion_matrix(coco, found, image_ids=[2]), [[0, 0, 0], [0, 0, 0], [0, 1, 0]])


def test_a_better_detection_is_served_first():
    coco = _coco((3, (0, 0, 10, 10), 0))
    found = [_found(7, (0, 0, 10, 10), 0.6), _found(3, (0, 0, 10, 8), 0.7)]
    np.testing.assert_array_equal(confusion_matrix(coco, found), [[1, 0, 0], [0, 0, 0], [0, 1, 0]])


def test_curves_of_precision_are_coco_s():
    """Two of three dogs are found, with a false one between: precision 1 up to recall 1/3, 2/3 up to 2/3, then 0."""
    coco = _coco(*((3, (20 * place, 0, 10, 10), 0) for place in range(3)))
    found = [_found(3, (0, 0, 10, 10), 0.9), _found(3, (0, 50, 10, 10), 0.8), _found(3, (20, 0, 10, 10), 0.7)]
    curve = coco_stats(coco, found, "bbox").precision[0]
    assert curve.shape == (101, 2)  # dogs, then cats, of which there are none
    np.testing.assert_allclose(curve[:, 0], [1.0] * 34 + [2 / 3] * 33 + [0.0] * 34)
    assert (curve[:, 1] == -1).all()
