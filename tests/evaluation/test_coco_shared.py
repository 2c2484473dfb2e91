"""COCO evaluation whose images several processes share."""

from __future__ import annotations

import pytest

from kmrcnn.engine.replicas import Replicas, interleaved
from kmrcnn.evaluation.coco import evaluate_coco
from tests.evaluation.test_coco import Boxes, Oracle

pytestmark = pytest.mark.once


class _InTurn(Replicas):
    """One of several replicas that run one after the other, the main one last."""

    def __init__(self, rank, count, parts):
        self.rank, self.count, self._parts = rank, count, parts

    def gather(self, value):
        self._parts[self.rank] = value
        return [self._parts[rank] for rank in range(self.count)] if self.is_main else None


class _Unreadable(Boxes):
    def load_image(self, image_id):
        if image_id == 1:
            raise OSError("disk on fire")
        return super().load_image(image_id)


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("kind", [Boxes, _Unreadable])
def test_shared_images_give_what_one_process_gives(kind, count):
    dataset, parts = kind(), {}
    wanted = evaluate_coco(Oracle(dataset), dataset, eval_type="both", verbose=0)
    models = [Oracle(dataset) for _ in range(count)]
    results = [evaluate_coco(models[rank], dataset, eval_type="both", verbose=0,
                             replicas=_InTurn(rank, count, parts)) for rank in reversed(range(count))]
    assert results[:-1] == [None] * (count - 1)
    assert results[-1].detections == wanted.detections and results[-1].skipped == wanted.skipped
    assert all((results[-1][kind].stats == wanted[kind].stats).all() for kind in ("bbox", "segm"))
    assert sum(sum(model.calls) for model in models) == 3 - len(wanted.skipped)


def test_parts_that_do_not_fit_are_refused():
    assert interleaved([[0, 2, 4], [1, 3]], 5) == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="replica 1 returned 1 results for 2 items"):
        interleaved([[0, 2, 4], [1]], 5)
