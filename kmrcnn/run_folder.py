"""Folders of training runs and the weight files in them: logs/shapes20260131T0930/mask_rcnn_shapes_0012.h5."""

from __future__ import annotations

import datetime
import errno
import os
import re

from kmrcnn.engine.checkpoint import read_last
from kmrcnn.engine.run import STATE_FOLDER
from kmrcnn.importers.atomic_file import remove_leftovers

_STAMP = "%Y%m%dT%H%M"
_WEIGHTS = re.compile(r"(?P<name>.+?)(?P<date>\d{8}T\d{4})[/\\]mask_rcnn_.*?(?P<epoch>\d{4})\.h5$")


class RunFolder:
    """Where a run writes, and how far it has come. A new one is that of a run starting now.

    Args:
        model_dir: folder of all runs.
        name: of the config, in lower case.

    Attributes:
        path: of the folder; nothing is made before `make`.
        epoch: epochs trained so far.
        continues: whether the run goes on in a folder that it has.
    """

    def __init__(self, model_dir: str, name: str):
        self.model_dir, self.name = model_dir, name
        self.path = os.path.join(model_dir, f"{name}{datetime.datetime.now():{_STAMP}}")
        self.epoch, self.continues = 0, False

    @property
    def weights_path(self) -> str:
        """Of the weight files, with "{epoch:04d}" for the epoch."""
        return os.path.join(self.path, f"mask_rcnn_{self.name}_{{epoch:04d}}.h5")

    def follow(self, weights: str | os.PathLike) -> bool:
        """Go on behind a weight file, if one of this name's runs in this model_dir wrote it; returns whether."""
        match = _WEIGHTS.match(os.path.abspath(weights))
        if not match or os.path.split(match["name"]) != (os.path.abspath(self.model_dir), self.name):
            return False
        self.take(match["name"] + match["date"])
        self.epoch = int(match["epoch"])
        return True

    def take(self, path: str) -> None:
        """Go on in a folder."""
        self.path, self.continues = path, True

    def make(self) -> None:
        """Make the folder, if there is need; a new run's is never that of another one of the same minute.

        What a run that was killed has left half-written in it is removed.

        Raises:
            OSError: it cannot be made.
        """
        try:
            if self.continues:
                os.makedirs(self.path, exist_ok=True)
            else:
                self._make_own()
        except OSError as error:
            raise type(error)(error.errno, f"The run's folder {self.path} cannot be made ({error.strerror}); choose "
                                           "another model_dir") from error
        self.continues = True
        remove_leftovers(self.path)

    def _make_own(self) -> None:
        """Make a folder that nobody else has, not even a run that begins in this moment; settle on its path."""
        if not os.path.exists(self.model_dir):
            os.makedirs(self.model_dir, exist_ok=True)
        while True:
            try:
                os.mkdir(self.path)
                return
            except FileExistsError:
                minute = datetime.datetime.strptime(self.path[-13:], _STAMP) + datetime.timedelta(minutes=1)
                self.path = f"{self.path[:-13]}{minute:{_STAMP}}"


def find_runs(model_dir: str, name: str) -> list[str]:
    """Folders of a name's runs, oldest first."""
    pattern = re.compile(re.escape(name) + r"\d{8}T\d{4}")
    entries = sorted(os.listdir(model_dir)) if os.path.isdir(model_dir) else []
    runs = [os.path.join(model_dir, entry) for entry in entries if pattern.fullmatch(entry)]
    return [run for run in runs if os.path.isdir(run)]


def weight_files(run: str) -> list[str]:
    """Paths of a run's weight files, oldest first."""
    names = sorted(name for name in os.listdir(run) if re.fullmatch(r"mask_rcnn.*\d{4}\.h5", name))
    return [os.path.join(run, name) for name in names]


def epoch_of(weights: str) -> int:
    """The epoch that a run's weight file was written after."""
    return int(re.search(r"(\d+)\.h5$", weights)[1])


def last_weights(model_dir: str, name: str) -> str:
    """The last weight file of the newest run that has one.

    Raises:
        FileNotFoundError: there is none.
    """
    runs = find_runs(model_dir, name)
    if not runs:
        raise FileNotFoundError(errno.ENOENT, f"Could not find model directory under {model_dir}")
    for run in reversed(runs):
        files = weight_files(run)
        if files:
            return files[-1]
    raise FileNotFoundError(errno.ENOENT, f"Could not find weight files in {', '.join(runs)}")


def best_weights(model_dir: str, name: str) -> str:
    """The weight file of the best epoch, by CHECKPOINT_BEST, of the newest run.

    Raises:
        FileNotFoundError: there is no run, it was trained without CHECKPOINT_BEST, or the file is gone.
    """
    runs = find_runs(model_dir, name)
    checkpoint = read_last(os.path.join(runs[-1], STATE_FOLDER)) if runs else None
    best = checkpoint and checkpoint.notes["best"]
    if not best:
        raise FileNotFoundError(errno.ENOENT, f"Could not find a run that was trained with CHECKPOINT_BEST under "
                                              f"{model_dir}")
    path = os.path.join(runs[-1], f"mask_rcnn_{name}_{int(best['name'].split('-')[0]):04d}.h5")
    if not os.path.exists(path):
        raise FileNotFoundError(errno.ENOENT, "Could not find the weights of the best epoch", path)
    return path
