"""TensorBoard's log, written with the `tensorboard` package's own writer, without TensorFlow."""

from __future__ import annotations

import io
import os
import re
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from kmrcnn.engine.place import Place
from kmrcnn.importers.atomic_file import written_atomically

_PREFIX = "events.out.tfevents."  # TensorBoard finds its files by this name
_STEP = "step/"  # before the names of a step's scalars


class EventFile:
    """Scalars and pictures for TensorBoard, all over the number of steps made.

    A step's scalars are called "step/loss"; those of an epoch keep their names: "loss", "val_loss". Where a run goes
    on, later events are taken out of its files, and a TensorBoard that is running is told to forget them.

    Args:
        folder: of the events.

    Raises:
        ImportError: there is no package `tensorboard`.
    """

    def __init__(self, folder: str | os.PathLike):
        # The package's own EventFileWriter would import TensorFlow.
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self.path = os.fspath(folder)
        self._events, self._summaries, self._make_writer = event_pb2, summary_pb2, RecordWriter
        self._file = self._writer = None

    def begin(self, place: Place) -> None:
        """Keep what was written up to a place, and open a file. Raises: OSError."""
        os.makedirs(self.path, exist_ok=True)
        for path in _event_files(self.path):
            self._cut(path, place)
        # Files are read in the order of their names, and one second may see two of them.
        second = max([int(time.time()), *(_second(path) + 1 for path in _event_files(self.path))])
        self._file = open(os.path.join(self.path, f"{_PREFIX}{second}.{socket.gethostname()}.{os.getpid()}"), "ab")
        self._writer = self._make_writer(self._file)
        self._write(file_version="brain.Event:2")
        log = self._events.SessionLog
        self._write(step=place.step + 1, session_log=log(status=log.START))

    def step(self, step: int, epoch: int, values: Mapping[str, float]) -> None:
        """Add a step's scalars. Raises: OSError."""
        self._write_scalars(step, {f"{_STEP}{name}": value for name, value in values.items()})

    def epoch(self, step: int, epoch: int, values: Mapping[str, float], details: Mapping[str, Any],
              pictures: Mapping[str, np.ndarray]) -> None:
        """Add an epoch's scalars, its details' as "segm_AP/cat", and its pictures. Raises: OSError."""
        parts = {f"{group}/{name}": value for group, part in details.items() for name, value in part.items()}
        self._write_scalars(step, {**values, **parts})
        for name, picture in pictures.items():
            self._write(step=step, summary=self._summaries.Summary(value=[self._image(name, picture)]))
        self._file.flush()

    def flush(self) -> None:
        """Wait until everything is on the disk. Raises: OSError."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = self._writer = None

    def _write_scalars(self, step: int, values: Mapping[str, float]) -> None:
        value = self._summaries.Summary.Value
        found = [value(tag=name, simple_value=float(number)) for name, number in values.items()]
        self._write(step=step, summary=self._summaries.Summary(value=found))
        self._file.flush()

    def _image(self, name: str, picture: np.ndarray) -> Any:
        from PIL import Image

        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "PNG")
        height, width = picture.shape[:2]
        return self._summaries.Summary.Value(tag=name, image=self._summaries.Summary.Image(
            height=height, width=width, colorspace=3, encoded_image_string=buffer.getvalue()))

    def _write(self, **event) -> None:
        self._writer.write(self._events.Event(wall_time=time.time(), **event).SerializeToString())

    def _cut(self, path: str, place: Place) -> None:
        """Take the events behind a place, and all from the first damaged record on, out of a file."""
        kept = [record for record, event in self._whole(path) if self._is_before(event, place)]
        if sum(map(len, kept)) == os.path.getsize(path):
            return
        with written_atomically(path) as temporary, open(temporary, "wb") as file:
            file.writelines(kept)

    def _whole(self, path: str) -> Iterator[tuple[bytes, Any]]:
        """(record, its event) up to the first that is damaged: TensorBoard reads no further either."""
        from google.protobuf.message import DecodeError

        for record in _records(path):
            try:
                yield record, self._events.Event.FromString(record[12:-4])
            except DecodeError:
                return

    def _is_before(self, event: Any, place: Place) -> bool:
        if event.WhichOneof("what") != "summary":
            return event.step <= place.step
        of_step = all(value.tag.startswith(_STEP) for value in event.summary.value)
        return event.step <= (place.step if of_step else place.epoch_step)


def _event_files(folder: str) -> list[str]:
    return sorted(os.path.join(folder, name) for name in os.listdir(folder) if name.startswith(_PREFIX))


def _second(path: str) -> int:
    found = re.match(r"\d+", os.path.basename(path).removeprefix(_PREFIX))
    return int(found[0]) if found else 0


def _records(path: str) -> Iterator[bytes]:
    """The whole records of a file: length (8 bytes), its checksum (4), data, their checksum (4).

    A crash may leave anything behind them. The data's checksums, which take long in Python, are not compared.
    """
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

    with open(path, "rb") as file:
        while len(head := file.read(12)) == 12:
            if struct.unpack("<I", head[8:])[0] != masked_crc32c(head[:8]):
                return
            size = struct.unpack("<Q", head[:8])[0] + 4
            body = file.read(size)
            if len(body) < size:
                return
            yield head + body
