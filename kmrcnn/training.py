"""What `MaskRCNN.train` does: finds what is left of a run, puts loaders, step, logs and loop together, saves."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import keras

from kmrcnn.config import Config
from kmrcnn.data.dataset import Dataset
from kmrcnn.data.loader import DataLoader
from kmrcnn.engine.callbacks import main_only
from kmrcnn.engine.execution import Execution
from kmrcnn.engine.guards import Guard
from kmrcnn.engine.logs import make_logs
from kmrcnn.engine.loop import fit
from kmrcnn.engine.optimizer import default_optimizer, ready_optimizer, updates_between
from kmrcnn.engine.prepare import image_preparation
from kmrcnn.engine.progress import say
from kmrcnn.engine.replicas import Replicas
from kmrcnn.engine.resume import Resumption, describe
from kmrcnn.engine.run import Run
from kmrcnn.engine.run_log import RunLog
from kmrcnn.engine.run_state import Stage, restore_optimizer
from kmrcnn.engine.scaling_rule import scaled_recipe, table
from kmrcnn.engine.stages import LAYER_STAGES, select_layers
from kmrcnn.engine.step import build_eval_step, build_train_step
from kmrcnn.engine.tuning import tuning_of
from kmrcnn.importers.load import load_into, save_model
from kmrcnn.report import write_report
from kmrcnn.run_folder import RunFolder, epoch_of, find_runs, weight_files
from kmrcnn.validation import Validation


@dataclass(frozen=True)
class Data:
    """What to train on; see `MaskRCNN.train`."""

    training: Dataset
    validation: Dataset | None
    augmentation: Any = None
    no_augmentation_sources: Collection[str] | None = None
    workers: int | None = None


class Trainer:
    """Trains a graph, call by call.

    Args:
        model: the training graph. config: of it. replicas: that train it together.
        folder: of the run.

    Attributes:
        folder: as given; another one begins another run, see `restart`.
    """

    def __init__(self, model: keras.Model, config: Config, replicas: Replicas, folder: RunFolder):
        self._model, self._config, self._replicas = model, config, replicas
        self._optimizer: keras.optimizers.Optimizer | None = None
        self.restart(folder)

    def restart(self, folder: RunFolder) -> None:
        """Let the next call begin a run in a folder, or go on in it."""
        self.folder, self._run = folder, Run()

    def compile(self, learning_rate: float | None, momentum: float | None,
                optimizer: keras.optimizers.Optimizer | None) -> None:
        """See `MaskRCNN.compile`."""
        self._optimizer = optimizer
        self._compile(default_optimizer(self._config, learning_rate, momentum) if optimizer is None else optimizer)

    def train(self, data: Data, learning_rate: float | None, epochs: int, layers: str,
              callbacks: Sequence[keras.callbacks.Callback], verbose: int,
              resume: bool | str | os.PathLike) -> keras.callbacks.History:
        """See `MaskRCNN.train`."""
        verbose = verbose if self._replicas.is_main else 0
        self._check(data)
        left = self._find_place(layers, epochs, resume)
        if left in ("done", "last"):
            self._say(f"Nothing left of layers={layers!r}, epochs={epochs}: the run is at epoch {self.folder.epoch}")
            history = keras.callbacks.History()
            history.on_train_begin()
            return history
        if self._replicas.is_main:
            self.folder.make()
        # The others may have begun in another minute, and may see the folder of all runs in another place.
        name = self._replicas.share(os.path.basename(self.folder.path))
        self.folder.take(os.path.join(os.path.dirname(self.folder.path), name))
        if verbose:
            print(f"\nStarting at epoch {self.folder.epoch}. LR={self._rate_text(learning_rate)}\n"
                  f"Checkpoint Path: {self.folder.weights_path}")
        state = self._run.begin(Stage(layers, epochs, learning_rate, self.folder.epoch), self.folder.path,
                                self._config_text(), self._keeping(), go_on=left == "go on",
                                writes=self._replicas.is_main)
        select_layers(self._model, LAYER_STAGES.get(layers, layers), verbose)
        history = self._fit(data, state, callbacks, verbose)
        if self._config.CHECKPOINT_BEST and state.keeper is not None and state.keeper.best is None:
            warnings.warn(f"CHECKPOINT_BEST: no epoch had a finite value {self._config.CHECKPOINT_BEST!r}; found "
                          f"{', '.join(history.history)}.", stacklevel=3)
        self._run.going = True
        self._write_report(verbose)
        return history

    def _check(self, data: Data) -> None:
        """Refuse to wait for what never comes.

        Raises:
            ValueError: the best epoch is to be that of a value of the validation set, and there is none.
        """
        best = self._config.CHECKPOINT_BEST
        if best and best.startswith("val_") and data.validation is None:
            raise ValueError(f"CHECKPOINT_BEST: found {best!r}, expected a value of the training set, such as 'loss', "
                             "as train() was given no val_dataset")

    def _fit(self, data: Data, state: Any, callbacks: Sequence[keras.callbacks.Callback],
             verbose: int) -> keras.callbacks.History:
        config, stage = self._config, state.stages[-1]
        terms = (config.LOSS_WEIGHTS, config.WEIGHT_DECAY, config.WEIGHT_DECAY_RULE)
        execution, tuning = self._execution(stage), tuning_of(config)
        logs = make_logs(self.folder.path, config, verbose)
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._replicas.scope())
            optimizer = self._ready_optimizer(stage, verbose)
            batches, val_batches = self._loaders(data, stack)
            step = build_train_step(self._model, optimizer, *terms, execution, tuning)
            return fit(
                self._model, step, batches, optimizer=optimizer, epochs=stage.epochs,
                steps_per_epoch=config.STEPS_PER_EPOCH,
                eval_step=build_eval_step(self._model, *terms, execution, tuning), val_batches=val_batches,
                validation_steps=config.VALIDATION_STEPS, callbacks=self._own([*logs.callbacks, *callbacks]),
                save=self._save, verbose=verbose, state=state,
                guard=Guard(config.MAX_SKIPPED_STEPS, scaled=getattr(step, "loss_scale", None) is not None),
                replicas=execution.replicas, measure=self._validation(data.validation, stage.epochs, logs.run, verbose))

    def _loaders(self, data: Data, stack: contextlib.ExitStack) -> tuple[DataLoader, DataLoader | None]:
        shared = {"workers": data.workers, "shard": self._replicas.shard}
        batches = stack.enter_context(DataLoader(
            data.training, self._config, augmentation=data.augmentation,
            no_augmentation_sources=data.no_augmentation_sources, training=True, **shared))
        if data.validation is None:
            return batches, None
        return batches, stack.enter_context(DataLoader(data.validation, self._config, **shared))

    def _own(self, callbacks: Sequence[keras.callbacks.Callback]) -> list[keras.callbacks.Callback]:
        """Those that this process should have."""
        return [callback for callback in callbacks if self._replicas.is_main or not main_only(callback)]

    def _ready_optimizer(self, stage: Stage, verbose: int) -> keras.optimizers.Optimizer:
        config = self._config
        if verbose and config.REFERENCE_BATCH_SIZE and self._optimizer is None:
            scaled = scaled_recipe(config, self._base_rate(stage.learning_rate))
            print(f"Linear scaling with the batch:\n{table(scaled)}")
        span = updates_between(config, stage.first_epoch, stage.epochs)
        optimizer = ready_optimizer(self._optimizer, self._model, config, stage.learning_rate, span)
        optimizer = self._replicas.adopt(optimizer)
        if self._optimizer is not None:
            self._optimizer = optimizer
        self._compile(optimizer)
        return optimizer

    def _base_rate(self, given: float | None) -> float:
        return self._config.LEARNING_RATE if given is None else given

    def _rate_text(self, given: float | None) -> str:
        own = given is None and self._optimizer is not None
        return "the optimizer's own" if own else str(self._base_rate(given))

    def _compile(self, optimizer: keras.optimizers.Optimizer) -> None:
        self._model.compile(optimizer=optimizer, jit_compile=False, auto_scale_loss=False)

    def _execution(self, stage: Stage) -> Execution:
        # All steps of the stage, also those before a stop: a resumed run must choose the same engine.
        config, steps = self._config, max(0, stage.epochs - stage.first_epoch) * self._config.STEPS_PER_EPOCH
        return Execution(config.ENGINE, config.GRADIENT_ACCUMULATION, steps, image_preparation(config), self._replicas,
                         guard=True)

    def _validation(self, dataset: Dataset | None, last: int, log: RunLog, verbose: int) -> Validation | None:
        """COCO's numbers on the validation set, if they are wanted."""
        if not self._config.EVALUATE_EPOCHS or dataset is None:
            return None
        return Validation(self._model, self._config, dataset, self.folder.path, last, log.show, self._replicas, verbose)

    # ---- where the run stands ----

    def _find_place(self, layers: str, epochs: int, resume: bool | str | os.PathLike) -> str:
        """What is left of a call of `train`, the same in all processes; see `_own_place`.

        Raises:
            FileNotFoundError: they found different checkpoints.
        """
        left = self._own_place(layers, epochs, resume)
        # Nothing may be written before all have read.
        places = self._replicas.gather((left, self.folder.epoch, socket.gethostname()))
        for rank, place in enumerate(places or ()):
            if place[:2] != places[0][:2]:
                raise FileNotFoundError(
                    errno.ENOENT, f"Process {rank} on {place[2]} found epoch {place[1]}, the main one epoch "
                    f"{places[0][1]}: all machines must share the folder {self.folder.model_dir}")
        return left

    def _own_place(self, layers: str, epochs: int, resume: bool | str | os.PathLike) -> str:
        """What is left of a call of `train`, see `Resumption.place`; looks for the run to resume if there is need."""
        run = self._run
        if not resume:
            run.resumption = None
            return "new" if epochs > self.folder.epoch else "done"
        if run.resumption is None and not run.going:
            self._attach(None if resume is True else os.fspath(resume))
        if run.resumption is None:
            return "new"
        left = run.resumption.place(layers, epochs)
        if left == "last" and self._optimizer is not None:
            self._restore_optimizer(run.resumption)
        return left

    def _attach(self, path: str | None) -> None:
        """Take over the run of a folder; None: of this one, or the newest of this name if there is one."""
        folder = self.folder
        if path is None:
            runs = find_runs(folder.model_dir, folder.name)
            path = folder.path if folder.continues else runs[-1] if runs else None
            if path is None:
                return
        if not os.path.isdir(path):
            raise FileNotFoundError(errno.ENOENT, "Could not find the run to resume", path)
        checkpoint = self._run.attach(path, self._model, self._config_text())
        if checkpoint is not None:
            folder.take(path)
            folder.epoch = checkpoint.notes["epoch"]
            self._say(f"Resuming {path} at {describe(self._run.resumption.stages, checkpoint.notes)}")
            return
        files = weight_files(path)
        if files and not (folder.continues and os.path.abspath(path) == os.path.abspath(folder.path)):
            load_into(self._model, files[-1], preset=self._config.PRESET)
            folder.epoch = epoch_of(files[-1])
        if files:
            warnings.warn(f"{path} has no checkpoint of the whole state: training goes on from weights alone, at "
                          f"epoch {folder.epoch}.", stacklevel=6)
        folder.take(path)

    def _restore_optimizer(self, resumption: Resumption) -> None:
        """Bring the user's optimizer to where it was at the end of the last stage, so that the next can use it."""
        layers = resumption.stages[-1].layers
        select_layers(self._model, LAYER_STAGES.get(layers, layers), verbose=0)
        optimizer = getattr(self._optimizer, "inner_optimizer", self._optimizer)
        if not optimizer.built:
            optimizer.build(self._model.trainable_variables)
        restore_optimizer(optimizer, resumption.checkpoint)

    # ---- what is written ----

    def _say(self, text: str) -> None:
        if self._replicas.is_main:
            print(text)

    def _config_text(self) -> str:
        try:
            return self._config.to_text()
        except ValueError as error:  # a function that has no name to be found by
            return f"# {error}\n"

    def _keeping(self) -> dict[str, Any]:
        config = self._config
        return {"minutes": config.CHECKPOINT_MINUTES, "keep": config.CHECKPOINT_KEEP, "best": config.CHECKPOINT_BEST}

    def _save(self, epoch: int) -> None:
        """Write the weight file of an epoch."""
        self.folder.epoch = epoch
        if not self._replicas.is_main:
            return
        path = self.folder.weights_path.replace("{epoch:04d}", f"{epoch:04d}")
        try:
            save_model(self._model, path, preset=self._config.PRESET)
        except (OSError, RuntimeError) as error:  # h5py says RuntimeError when it cannot flush
            reason = getattr(error, "strerror", None) or error
            warnings.warn(f"{path} could not be written: {reason}. Training goes on.", stacklevel=2)

    def _write_report(self, verbose: int) -> None:
        if not (self._config.LOG_REPORT and self._replicas.is_main):
            return
        try:
            path = write_report(self.folder.path)
        except Exception as error:  # of pictures, which must not cost the caller a finished training
            warnings.warn(f"The report of {self.folder.path} could not be written: {type(error).__name__}: {error}",
                          stacklevel=4)
            return
        if verbose:
            say(f"Plots: {path}")
