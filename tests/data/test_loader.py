"""DataLoader: contents, determinism, bad samples, workers."""

from __future__ import annotations

import os
import pickle
import signal
import threading

import numpy as np
import pytest

from kmrcnn.data.augment import Compose, HorizontalFlip, Rotate90
from kmrcnn.data.dataset import Dataset
from kmrcnn.data.loader import DataLoader
from kmrcnn.data.shapes import ShapesDataset
from kmrcnn.data.worker import PackedList
from tests.data.broken_datasets import AlwaysBroken, Deadly, Deep, HalfDeep, Nothing, SometimesBroken, Talkative
from tests.data.conftest import make_config

pytestmark = pytest.mark.once


def shapes(count=10, height=128, width=128, kind=ShapesDataset):
    dataset = kind()
    dataset.load_shapes(count, height, width)
    dataset.prepare()
    return dataset


def image_ids(batch):
    return batch["input_image_meta"][:, 0].astype(int).tolist()


def assert_equal(first, second):
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)


@pytest.mark.parametrize("mini", [True, False])
def test_batch_contents(mini):
    config = make_config(USE_MINI_MASK=mini, USE_RPN_ROIS=False, POST_NMS_ROIS_TRAINING=50)
    dataset = shapes()
    batch = DataLoader(dataset, config, shuffle=False).batch(0)
    masks = (56, 56) if mini else (128, 128)
    expected = {
        "input_image": ((4, 128, 128, 3), np.uint8),
        "input_image_meta": ((4, 16), np.float32),
        "input_gt_class_ids": ((4, 6), np.int32),
        "input_gt_boxes": ((4, 6, 4), np.float32),
        "input_gt_masks": ((4, *masks, 6), bool),
        "input_sample_seed": ((4, 1), np.int32),
        "input_roi": ((4, 50, 4), np.float32),
    }
    assert {name: (array.shape, array.dtype) for name, array in batch.items()} == expected
    assert image_ids(batch) == [0, 1, 2, 3]
    np.testing.assert_array_equal(batch["input_image"][2], dataset.load_image(2))
    real, class_ids = dataset.load_mask(2)
    count = len(class_ids)
    np.testing.assert_array_equal(batch["input_gt_class_ids"][2], [*class_ids, *[0] * (6 - count)])
    assert not batch["input_gt_boxes"][2, count:].any() and not batch["input_gt_masks"][2, ..., count:].any()
    if not mini:
        np.testing.assert_array_equal(batch["input_gt_masks"][2, ..., :count], real)
    assert (batch["input_sample_seed"] >= 0).all() and len(
        set(batch["input_sample_seed"].ravel().tolist())
    ) == 4


def test_images_that_are_not_8_bit_are_normalised_here():
    config = make_config(IMAGES_PER_GPU=2)
    dataset = shapes(2, kind=Deep)
    loader = DataLoader(dataset, config, shuffle=False)
    images = loader.batch(0)["input_image"]
    assert images.dtype == np.float32
    for number in range(2):
        np.testing.assert_allclose(images[number], dataset.load_image(number) - config.MEAN_PIXEL, rtol=1e-6)
    mixed = shapes(2, kind=HalfDeep)
    images = DataLoader(mixed, config, shuffle=False).batch(0)["input_image"]
    np.testing.assert_allclose(images[0], mixed.load_image(0) - config.MEAN_PIXEL, rtol=1e-6)


def test_a_pass_shows_every_image_and_the_next_in_another_order():
    loader = DataLoader(shapes(), make_config())
    assert loader.batches_per_pass == 3
    passes = [
        [number for step in range(3) for number in image_ids(loader.batch(3 * index + step))]
        for index in (0, 1)
    ]
    for seen in passes:
        assert len(seen) == 12 and set(seen) == set(range(10))
    assert passes[0] != passes[1]
    same = DataLoader(shapes(), make_config())
    assert [number for step in range(3) for number in image_ids(same.batch(3 + step))] == passes[1]
    other = DataLoader(shapes(), make_config(), seed=1)
    assert [number for step in range(3) for number in image_ids(other.batch(step))] != passes[0]


def test_fewer_images_than_a_batch():
    assert image_ids(DataLoader(shapes(3), make_config(IMAGES_PER_GPU=8), shuffle=False).batch(0)) == [
        0,
        1,
        2,
        0,
        1,
        2,
        0,
        1,
    ]


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("backend", ["thread", "process"])
def test_streams_equal_single_batches(backend, workers):
    augmentation = Compose([HorizontalFlip(), Rotate90()])
    config = make_config(LOADER_BACKEND=backend)
    with DataLoader(shapes(kind=Talkative), config, augmentation=augmentation, workers=workers) as loader:
        assert loader.backend == backend
        streamed = list(loader.stream(2, 9))
        assert len(streamed) == 7
        for step, batch in zip(range(2, 9), streamed, strict=True):
            assert_equal(batch, loader.batch(step))
        unfinished = loader.stream(0)
        assert_equal(next(unfinished), loader.batch(0))
        unfinished.close()
        assert_equal(next(loader.stream(4)), loader.batch(4))


def test_packed_lists_are_lists():
    items = [{"a": [1, 2]}, {}, {"b": np.arange(3)}]
    packed = pickle.loads(pickle.dumps(PackedList(items)))
    assert len(packed) == 3 and packed[0] == items[0] and packed[np.int64(1)] == {} and len(list(packed)) == 3
    np.testing.assert_array_equal(packed[-1]["b"], [0, 1, 2])
    with pytest.raises(IndexError):
        packed[3]


def test_streams_without_workers():
    loader = DataLoader(shapes(), make_config())
    assert loader.backend == "none" and len(list(loader.stream(1, 4))) == 3


def test_augmentation_is_drawn_anew_in_each_pass_but_not_for_named_sources():
    def picture(step, **arguments):
        loader = DataLoader(shapes(1), make_config(IMAGES_PER_GPU=1), augmentation=Rotate90(), **arguments)
        return loader.batch(step)["input_image"]

    assert len({picture(step).tobytes() for step in range(12)}) == 4
    assert len({picture(step, no_augmentation_sources=["shapes"]).tobytes() for step in range(6)}) == 1


def test_bad_samples_are_replaced_counted_and_named_once(caplog):
    loader = DataLoader(shapes(9, kind=SometimesBroken), make_config(IMAGES_PER_GPU=3), shuffle=False)
    batches = [loader.batch(step) for step in range(6)]
    assert all(number % 3 for batch in batches for number in image_ids(batch))
    assert loader.skipped >= 6 and set(loader.bad_images) == {0, 3, 6}
    assert caplog.text.count("Skipped a bad sample") == 3
    assert "image 3 (shapes.0-3): OSError: disk on fire" in caplog.text
    again = DataLoader(shapes(9, kind=SometimesBroken), make_config(IMAGES_PER_GPU=3), shuffle=False)
    assert_equal(again.batch(5), batches[5])


@pytest.mark.parametrize("backend", ["thread", "process"])
def test_failures_reach_the_caller(backend, caplog):
    config = make_config(LOADER_BACKEND=backend, LOADER_WORKERS=1)
    with DataLoader(shapes(9, kind=SometimesBroken), config) as loader:
        list(loader.stream(0, 3))
        assert set(loader.bad_images) == {0, 3, 6}
    with DataLoader(shapes(5, kind=AlwaysBroken), config) as loader:
        with pytest.raises(RuntimeError, match="None of 5 images can be used.*KeyError: 'no such mask'"):
            next(loader.stream())


def test_a_dead_worker_is_an_error():
    with DataLoader(shapes(kind=Deadly), make_config(LOADER_BACKEND="process"), workers=1) as loader:
        with pytest.raises(RuntimeError, match="worker process was ended by signal 9"):
            next(loader.stream())


@pytest.mark.skipif(os.name != "posix", reason="no such signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_asks_for_an_end_ends_no_worker_that_starts(number):
    """Ctrl-C goes to all processes of a terminal; the parent decides."""
    with DataLoader(shapes(), make_config(LOADER_BACKEND="process"), workers=1) as loader:
        loader._prepare_workers()
        os.kill(loader._processes[0].process.pid, number)
        assert len(list(loader.stream(0, 2))) == 2
        assert not set(signal.pthread_sigmask(signal.SIG_BLOCK, ())) & {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}


@pytest.mark.skipif(os.name != "posix", reason="no such signals")
def test_a_worker_that_hangs_can_be_interrupted():
    with DataLoader(shapes(), make_config(LOADER_BACKEND="process"), workers=1) as loader:
        next(stream := loader.stream())
        worker = loader._processes[0].process
        os.kill(worker.pid, signal.SIGSTOP)
        handler = signal.signal(signal.SIGINT, signal.default_int_handler)
        timers = [threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)),
                  threading.Timer(30.0, os.kill, (worker.pid, signal.SIGCONT))]
        for timer in timers:
            timer.start()
        try:
            with pytest.raises(KeyboardInterrupt):
                list(stream)
            assert worker.poll() == -signal.SIGKILL, "it went on only because it was woken up"
        finally:
            timers[1].cancel()
            signal.signal(signal.SIGINT, handler)


def test_images_without_instances_are_kept():
    batch = DataLoader(shapes(kind=Nothing), make_config(USE_RPN_ROIS=False)).batch(0)
    assert not batch["input_gt_class_ids"].any() and not batch["input_gt_masks"].any()
    assert (batch["input_roi"][:, :, 2:] > batch["input_roi"][:, :, :2]).all()


def test_too_many_instances_are_thinned_at_random():
    config = make_config(MAX_GT_INSTANCES=1, IMAGES_PER_GPU=10)
    dataset = shapes()
    loader = DataLoader(dataset, config, shuffle=False)
    batches = [loader.batch(step) for step in range(20)]
    crowded = next(number for number in range(10) if len(set(dataset.load_mask(number)[1].tolist())) > 1)
    chosen = {int(batch["input_gt_class_ids"][crowded, 0]) for batch in batches}
    assert chosen == set(dataset.load_mask(crowded)[1].tolist())


def mixed():
    dataset = ShapesDataset()
    for start, (height, width) in enumerate([(100, 150), (150, 100), (100, 150), (90, 150), (150, 90)]):
        dataset.load_shapes(1, height, width, start=start)
    dataset.prepare()
    return dataset


def test_buckets_hold_one_shape_each():
    config = make_config(IMAGE_SHAPES=[(128, 192), (192, 128)], IMAGE_MAX_DIM=192, IMAGES_PER_GPU=2)
    loader = DataLoader(mixed(), config)
    assert loader.batches_per_pass == 3
    seen = {}
    for step in range(3):
        batch = loader.batch(step)
        seen.setdefault(batch["input_image"].shape[1:3], set()).update(image_ids(batch))
    assert seen == {(128, 192): {0, 2, 3}, (192, 128): {1, 4}}
    assert (
        len({loader.batch(3 * index)["input_image"].shape for index in range(8)}) == 2
    )  # batches are mixed too


def test_pad64_groups_by_shape_up_to_a_limit():
    config = make_config(IMAGE_RESIZE_MODE="pad64", IMAGE_MIN_DIM=64)
    assert DataLoader(mixed(), config).batches_per_pass == 2
    with pytest.raises(ValueError, match="9 image shapes.*set IMAGE_SHAPES"):
        dataset = ShapesDataset()
        for number in range(9):
            dataset.load_shapes(1, 64, 64 * (number + 1), start=number)
        dataset.prepare()
        DataLoader(dataset, config)


def test_mode_none_takes_sizes_that_fit_the_model(caplog):
    dataset = mixed()
    dataset.load_shapes(2, 128, 192, start=7)
    dataset.prepare()
    loader = DataLoader(dataset, make_config(IMAGE_RESIZE_MODE="none", IMAGES_PER_GPU=2), shuffle=False)
    assert loader.batches_per_pass == 1 and image_ids(loader.batch(0)) == [5, 6]
    assert set(loader.bad_images) == {0, 1, 2, 3, 4}
    assert "image 0 (shapes.0-0): ValueError: IMAGE_RESIZE_MODE 'none'" in caplog.text
    with pytest.raises(RuntimeError, match="None of 5 images.*multiples of IMAGE_DIVISOR=64, found 100 x 150"):
        DataLoader(mixed(), make_config(IMAGE_RESIZE_MODE="none"))


def test_an_image_that_is_not_its_declared_size_is_bad(caplog):
    dataset = mixed()
    dataset.image_info[0]["height"] = 100
    config = make_config(IMAGE_SHAPES=[(128, 192), (192, 128)], IMAGE_MAX_DIM=192, IMAGES_PER_GPU=1)
    loader = DataLoader(dataset, config, shuffle=False)
    dataset.image_info[0]["height"] = 300
    loader.batch(0)
    assert "expected a molded image of (128, 192, 3)" in loader.bad_images[0]


def test_unfit_datasets_are_refused():
    with pytest.raises(ValueError, match="NUM_CLASSES is 2, but the dataset has 4 classes"):
        DataLoader(shapes(), make_config(NUM_CLASSES=2))
    with pytest.raises(ValueError, match="no images"):
        DataLoader(Dataset(), make_config())
    dataset = shapes()
    dataset.add_image("shape", image_id=0, path=None)
    dataset.prepare()
    with pytest.raises(ValueError, match="Images of source 'shape', but classes only of \\['shapes'\\]"):
        DataLoader(dataset, make_config())


def test_processes_only_where_they_can_work():
    config = make_config(LOADER_WORKERS=1)
    assert DataLoader(shapes(), config).backend == "process"
    assert DataLoader(shapes(), config, augmentation=lambda a, b: (a, b)).backend == "thread"

    def from_script(image, masks):
        return image, masks

    from_script.__module__ = "__main__"
    from_script.__qualname__ = "print"  # stands for a function that pickles by name
    assert DataLoader(shapes(), config, augmentation=from_script).backend == "thread"
    for augmentation, message in ((lambda a, b: (a, b), "pickled"), (from_script, "pickled|running script")):
        with pytest.raises(ValueError, match=message):
            DataLoader(
                shapes(), make_config(LOADER_WORKERS=1, LOADER_BACKEND="process"), augmentation=augmentation
            )
    with pytest.raises(ValueError, match="expected 'auto', 'process' or 'thread'"):
        DataLoader(shapes(), make_config(LOADER_WORKERS=1, LOADER_BACKEND="fork"))
