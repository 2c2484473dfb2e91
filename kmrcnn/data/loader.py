"""DataLoader: batches by number, made ahead of time by worker threads or processes."""

from __future__ import annotations

import functools
import itertools
import logging
import queue
import threading
import weakref
from collections import deque
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from kmrcnn.data.augment import build
from kmrcnn.data.buckets import Bucket, form_groups
from kmrcnn.data.dataset import Dataset
from kmrcnn.data.reader import Sample, SampleReader, collate, reader_settings
from kmrcnn.data.scene import Augmentation
from kmrcnn.data.worker import WorkerProcess, pack_reader

logger = logging.getLogger("kmrcnn.data")


class DataLoader:
    """Training batches that depend only on (seed, step).

    Steps are counted from 0 over the whole run; `batches_per_pass` of them show every image once (a last
    batch that would be short repeats images of its own pass). A sample that cannot be used is replaced by
    another of the same shape, with one warning per image; `skipped` counts the replacements and `bad_images`
    holds the reasons by image id. Images without instances are kept.

    Args:
        dataset: a prepared Dataset with config.NUM_CLASSES classes.
        config: the Config of the model.
        batch_size: images per batch, over all shards; config.BATCH_SIZE by default.
        shuffle: a new order in every pass.
        augmentation: one of `kmrcnn.data.augment`, or of another kind, see `apply_augmentation` there.
        no_augmentation_sources: sources whose images are not augmented.
        seed: config.SEED by default.
        workers: config.LOADER_WORKERS by default; 0 loads in the calling thread.
        training: what is for training alone, TRAIN_SCALES, ASPECT_GROUPING, and AUGMENTATION where `augmentation` is
            None, is used.
        shard: (index, count): of every batch, formed as ever, this loader makes the index-th of `count` equal parts.

    A batch is a dict of numpy arrays named after the model's inputs, B images, M = MAX_GT_INSTANCES:
        input_image: uint8 (B, H, W, C), not normalised: `kmrcnn.engine.prepare.image_preparation` does that on the
            model's device. Images of another dtype: float32, normalised by MEAN_PIXEL and STD_PIXEL.
        input_image_meta: float32 (B, 12 + NUM_CLASSES).
        input_gt_class_ids: int32 (B, M); 0 is padding, negative a crowd.
        input_gt_boxes: float32 (B, M, 4) y1x1y2x2 pixels, half-open.
        input_gt_masks: bool (B, h, w, M) mini-masks, or (B, H, W, M).
        input_sample_seed: int32 (B, 1), not negative.
        input_roi: float32 (B, POST_NMS_ROIS_TRAINING, 4) pixels, only with USE_RPN_ROIS False.

    Raises ValueError for a dataset that does not fit the config, and RuntimeError when no image can be used
    or when a worker process dies.
    """

    def __init__(
        self,
        dataset: Dataset,
        config: Any,
        batch_size: int | None = None,
        shuffle: bool = True,
        augmentation: Any = None,
        no_augmentation_sources: Collection[str] | None = None,
        seed: int | None = None,
        workers: int | None = None,
        shard: tuple[int, int] = (0, 1),
        training: bool = False,
    ):
        _check(dataset, config)
        if training and augmentation is None:
            augmentation = build(config.AUGMENTATION)
        self.batch_size = config.BATCH_SIZE if batch_size is None else batch_size
        self._rows = _shard_rows(self.batch_size, *shard)
        self.shuffle = shuffle
        self.workers = config.LOADER_WORKERS if workers is None else workers
        self.settings = reader_settings(config)
        self.skipped = 0
        self.bad_images: dict[int, str] = {}
        self._lock = threading.Lock()
        plain = frozenset(no_augmentation_sources or ())
        self._groups = form_groups(
            dataset, self.settings, functools.partial(_size_of, dataset, augmentation, plain), training,
            lambda *failure: self._note([failure]),
        )
        if not self._groups:
            first = next(iter(self.bad_images.values()))
            raise RuntimeError(f"None of {len(dataset.image_ids)} images can be used. {first}")
        self._reader = SampleReader(
            dataset,
            augmentation,
            plain,
            config.SEED if seed is None else seed,
            [bucket for group in self._groups for bucket in group],
        )
        self.batches_per_pass = sum(-(-len(group[0].members) // self.batch_size) for group in self._groups)
        self._plan = functools.lru_cache(maxsize=4)(self._make_plan)
        self._payload = _payload(self._reader, config.LOADER_BACKEND) if self.workers else None
        self._processes: list[WorkerProcess] = []
        self._idle: queue.SimpleQueue[WorkerProcess] = queue.SimpleQueue()
        self._finalizer = weakref.finalize(self, _close_all, self._processes)

    @property
    def backend(self) -> str:
        """What makes the batches of `stream`: "process", "thread" or "none"."""
        if not self.workers:
            return "none"
        return "process" if self._payload else "thread"

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """The batch of a global step, made in the calling thread."""
        return collate(self.samples(step), self.settings, self._least_shape(step))

    def samples(self, step: int) -> list[Sample]:
        """The samples of a global step before padding, made in the calling thread."""
        return self._read(step, self._reader.read)

    def stream(self, start: int = 0, stop: int | None = None) -> Iterator[dict[str, np.ndarray]]:
        """Batches of steps start to stop - 1 (endless without stop), made ahead by the workers."""
        steps = itertools.count(start) if stop is None else iter(range(start, stop))
        if not self.workers:
            yield from map(self.batch, steps)
            return
        build = self._prepare_workers()
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="kmrcnn-loader")
        try:
            ahead = deque(pool.submit(build, step) for step in itertools.islice(steps, 2 * self.workers))
            while ahead:
                batch = ahead.popleft().result()
                ahead.extend(pool.submit(build, step) for step in itertools.islice(steps, 1))
                yield batch
        except KeyboardInterrupt:
            self.close()  # a thread that waits for a worker that hangs would be waited for
            raise
        finally:
            pool.shutdown(cancel_futures=True)

    def close(self) -> None:
        """End the worker processes. The loader can be used again and starts new ones."""
        _close_all(self._processes)
        self._idle = queue.SimpleQueue()

    def __enter__(self) -> DataLoader:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    def _read(self, step: int, read: Callable) -> list[Sample]:
        pass_index, place = divmod(step, self.batches_per_pass)
        bucket, image_ids = self._plan(pass_index)[place]
        samples, failures = read(pass_index, bucket, image_ids, self._rows)
        self._note(failures)
        return samples

    def _least_shape(self, step: int) -> tuple[int, int]:
        """(height, width) that the whole batch of a step needs, whose other shards this loader does not read."""
        pass_index, place = divmod(step, self.batches_per_pass)
        bucket, image_ids = self._plan(pass_index)[place]
        return self._reader.buckets[bucket].common_shape(image_ids)

    def _prepare_workers(self) -> Callable[[int], dict[str, np.ndarray]]:
        """Start them where they are processes; returns what makes the batch of a step."""
        if self._payload is None:
            return self.batch
        while len(self._processes) < self.workers:
            self._processes.append(WorkerProcess(self._payload))
            self._idle.put(self._processes[-1])
        return self._remote_batch

    def _remote_batch(self, step: int) -> dict[str, np.ndarray]:
        idle = self._idle
        process = idle.get()
        try:  # collate copies the samples out of the memory that the next read overwrites
            return collate(self._read(step, process.read), self.settings, self._least_shape(step))
        finally:
            idle.put(process)

    def _note(self, failures: list[tuple[int, str]]) -> None:
        with self._lock:
            self.skipped += len(failures)
            for image_id, reason in failures:
                if image_id not in self.bad_images:
                    self.bad_images[image_id] = reason
                    logger.warning("Skipped a bad sample: %s", reason)

    def _make_plan(self, pass_index: int) -> list[tuple[int, np.ndarray]]:
        """(bucket, image ids) of every batch of a pass."""
        plan, first = [], 0
        for number, group in enumerate(self._groups):
            rows = self._rows_of(group[0], (self._reader.seed, pass_index, number))
            rng = np.random.default_rng((self._reader.seed, pass_index, number, 1))
            scales = rng.integers(len(group), size=len(rows))
            plan += zip((first + scales).tolist(), rows, strict=True)
            first += len(group)
        if self.shuffle and (len(self._groups) > 1 or self._groups[0][0].ratios is not None):
            order = np.random.default_rng((self._reader.seed, pass_index)).permutation(len(plan))
            plan = [plan[index] for index in order]
        return plan

    def _rows_of(self, bucket: Bucket, seed: tuple[int, ...]) -> np.ndarray:
        """The members of a group in rows of a batch each; where they are sorted, neighbours in a row."""
        count, size = len(bucket.members), self.batch_size
        order = np.random.default_rng(seed).permutation(count) if self.shuffle else np.arange(count)
        if bucket.ratios is not None:
            order = order[np.argsort(bucket.ratios[order], kind="stable")]
            if count > size and count % size:  # what completes the last row is its neighbours, not the first images
                order = np.concatenate([order[: -(count % size)], order[-size:]])
        return np.resize(bucket.members[order], (-(-len(order) // size), size))


def _size_of(dataset: Dataset, augmentation: Any, plain: Collection[str], image_id: int) -> tuple[int, int]:
    """(height, width) of an image as it comes to be resized; nothing is done to those of the sources `plain`."""
    size = dataset.image_size(image_id)
    if not isinstance(augmentation, Augmentation) or dataset.image_info[image_id]["source"] in plain:
        return size
    return augmentation.size_before(*size)


def _check(dataset: Dataset, config: Any) -> None:
    if not len(dataset.image_ids):
        raise ValueError("The dataset has no images: add some, then call prepare()")
    if dataset.num_classes != config.NUM_CLASSES:
        raise ValueError(
            f"NUM_CLASSES is {config.NUM_CLASSES}, but the dataset has {dataset.num_classes} classes with "
            f"the background: {', '.join(dataset.class_names[:10])}"
        )
    classless = {info["source"] for info in dataset.image_info} - set(dataset.source_class_ids)
    if classless:
        raise ValueError(
            f"Images of source {min(classless)!r}, but classes only of {[s for s in dataset.sources if s]}: give "
            "add_class and add_image the same source"
        )


def _shard_rows(batch_size: int, index: int, count: int) -> slice:
    if not 0 <= index < count:
        raise ValueError(f"shard: found ({index}, {count}), expected an index from 0 to {count - 1}")
    if batch_size % count:
        raise ValueError(f"batch_size: found {batch_size}, expected a multiple of the {count} shards")
    size = batch_size // count
    return slice(index * size, (index + 1) * size)


def _payload(reader: SampleReader, backend: str) -> bytes | None:
    """The pickled reader for worker processes, or None where threads are wanted or needed."""
    if backend not in ("auto", "process", "thread"):
        raise ValueError(f"LOADER_BACKEND is {backend!r}, expected 'auto', 'process' or 'thread'")
    if backend == "thread":
        return None
    try:
        payload = pack_reader(reader)
    except Exception as error:
        if backend == "process":
            raise ValueError(
                f"LOADER_BACKEND 'process': dataset or augmentation cannot be pickled: {error}"
            ) from error
        return None
    if b"__main__" in payload:  # a class of the running script, which a worker cannot import
        if backend == "process":
            raise ValueError(
                "LOADER_BACKEND 'process': dataset or augmentation is defined in the running script; move "
                "it to a module of its own, or use LOADER_BACKEND 'thread'"
            )
        return None
    return payload


def _close_all(processes: list[WorkerProcess]) -> None:
    while processes:
        processes.pop().close()
