"""All that training needs to go on exactly: taken from model, optimizer, step and callbacks, and given back.

There is no state of random generators: batches, augmentation and sampling follow from the step's number.
"""

from __future__ import annotations

import datetime
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import keras
import numpy as np

from kmrcnn.engine import callback_state
from kmrcnn.engine.checkpoint import Checkpoint, CheckpointError
from kmrcnn.engine.keeper import Keeper
from kmrcnn.engine.progress import RunningMean


@dataclass
class Stage:
    """One call of `train`.

    Args:
        layers, epochs, learning_rate: its arguments.
        first_epoch: epochs done before it.
        finished: whether it came to its end, which may be before `epochs`.
    """

    layers: str
    epochs: int
    learning_rate: float | None = None
    first_epoch: int = 0
    finished: bool = False


def stages_of(checkpoint: Checkpoint) -> list[Stage]:
    """All stages of the run up to a checkpoint; the last one is that in which it was written."""
    return [Stage(**values) for values in checkpoint.notes["stages"]]


class RunState:
    """Writes the state of a stage, and restores it.

    Args:
        keeper: of the checkpoints; None in processes that write nothing.
        stages: those of the run; the last one is running.
        resumed: the checkpoint to go on from; None to start the stage.
        new_rate: whether the rest of the resumed stage has the learning rate that its optimizer was made with, instead
            of the checkpoint's.
    """

    def __init__(self, keeper: Keeper | None, stages: Sequence[Stage], resumed: Checkpoint | None = None,
                 new_rate: bool = False):
        self.keeper, self.stages, self.resumed, self._new_rate = keeper, list(stages), resumed, new_rate

    @property
    def place(self) -> tuple[int, int]:
        """(epochs done, steps of the next one) where the stage goes on."""
        if self.resumed is None:
            return self.stages[-1].first_epoch, 0
        return self.resumed.notes["epoch"], self.resumed.notes["step"]

    @property
    def stopping(self) -> bool:
        """Whether training was to end at this place, with the end of an epoch that had no more steps to come."""
        return self.resumed is not None and self.resumed.notes.get("stopping", False)

    def restore(self, model: keras.Model, optimizer, train_step, callbacks: Sequence, means: RunningMean) -> None:
        """Put everything back to where the checkpoint was written; without one, do nothing.

        Raises:
            CheckpointError: the checkpoint is another network's or optimizer's.
        """
        if self.resumed is None:
            return
        arrays, notes = dict(self.resumed.arrays), self.resumed.notes
        restore_model(model, self.resumed)
        rate = _own_rate(optimizer) if self._new_rate else None
        restore_optimizer(optimizer, self.resumed)
        if rate is not None:
            optimizer.learning_rate = rate
        own = _under("step/", arrays)
        if own:
            train_step.restore(own)
        callback_state.restore(callbacks, notes["callbacks"], arrays)
        means.restore(notes["means"])

    def before_callbacks(self, optimizer, callbacks: Sequence) -> Callable[[], None]:
        """Note what callbacks change behind an epoch: the learning rate and what they remember.

        Returns:
            A function that puts this back.
        """
        rate, (states, arrays) = _own_rate(optimizer), callback_state.collect(callbacks)
        arrays = {name: np.array(array) for name, array in arrays.items()}  # they may change them in place

        def put_back() -> None:
            if rate is not None:
                optimizer.learning_rate = rate
            callback_state.restore(callbacks, states, arrays)

        return put_back

    def due(self) -> bool:
        """Whether it is time for a checkpoint inside an epoch."""
        return self.keeper is not None and self.keeper.due()

    def save(self, epoch: int, step: int, model: keras.Model, optimizer, train_step, callbacks: Sequence,
             means: RunningMean, *, stopping: bool = False, finished: bool = False,
             logs: Mapping[str, float] | None = None) -> bool:
        """Write the state after `epoch` epochs and `step` steps; see `Keeper.save`.

        Every replica calls it; the one with the keeper writes.
        """
        train_step.sync()
        own = train_step.state()
        self.stages[-1].finished = finished
        if self.keeper is None:
            return True

        def collect() -> tuple[dict, dict]:
            states, arrays = callback_state.collect(callbacks)
            arrays |= _model_arrays(model) | _optimizer_arrays(optimizer)
            arrays |= {f"step/{name}": np.asarray(value) for name, value in own.items()}
            notes = {"epoch": epoch, "step": step, "stopping": stopping, "means": means.state(), "callbacks": states,
                     "optimizer": type(_inner(optimizer)).__name__, "stages": [asdict(stage) for stage in self.stages],
                     "written": datetime.datetime.now().isoformat(timespec="seconds"), "versions": versions(),
                     "backend": keras.backend.backend()}
            return arrays, notes

        return self.keeper.save(epoch, step, collect, logs)


def restore_model(model: keras.Model, checkpoint: Checkpoint) -> None:
    """Give the model the checkpoint's weights and statistics.

    Raises:
        CheckpointError: it is another network's; the model is unchanged.
    """
    values = _under("model/", checkpoint.arrays)
    pairs = [(variable, values.get(variable.path)) for variable in model.variables]
    for variable, value in pairs:
        _check(checkpoint, f"weight {variable.path}", variable, value)
    for variable, value in pairs:
        variable.assign(value)


def restore_optimizer(optimizer, checkpoint: Checkpoint) -> None:
    """Give a built optimizer the checkpoint's iterations, learning rate, slots and averages.

    Raises:
        CheckpointError: it is another optimizer's, or was built for other layers; the optimizer is unchanged.
    """
    optimizer, values = _inner(optimizer), _under("optimizer/", checkpoint.arrays)
    kind, variables = type(optimizer).__name__, optimizer.variables
    if kind != checkpoint.notes["optimizer"] or len(variables) != len(values):
        raise CheckpointError(f"{checkpoint.path} holds {checkpoint.notes['optimizer']} with {len(values)} variables, "
                              f"this run trains with {kind} and {len(variables)}: resume with the optimizer and layers "
                              "of the run, or load its weights to start another one")
    for index, variable in enumerate(variables):
        _check(checkpoint, f"optimizer variable {variable.path}", variable, values[str(index)])
    for index, variable in enumerate(variables):
        variable.assign(values[str(index)])


def versions() -> dict[str, str]:
    """Of Python and what the numbers depend on."""
    backend = __import__(keras.backend.backend())
    return {"python": platform.python_version(), "keras": keras.__version__, "numpy": np.__version__,
            keras.backend.backend(): str(backend.__version__)}


def _inner(optimizer):
    """What steps update: of a LossScaleOptimizer its inner one."""
    return getattr(optimizer, "inner_optimizer", optimizer)


def _own_rate(optimizer) -> float | None:
    """The learning rate if it is one of the optimizer's variables; schedules are not."""
    if callable(_inner(optimizer)._learning_rate):
        return None
    return float(keras.ops.convert_to_numpy(optimizer.learning_rate))


def _model_arrays(model: keras.Model) -> dict[str, np.ndarray]:
    return {f"model/{variable.path}": _array(variable) for variable in model.variables}


def _optimizer_arrays(optimizer) -> dict[str, np.ndarray]:
    # Their paths hold the optimizer's name, which counts up with every optimizer a process makes.
    return {f"optimizer/{index}": _array(variable) for index, variable in enumerate(_inner(optimizer).variables)}


def _array(variable: keras.Variable) -> np.ndarray:
    array = keras.ops.convert_to_numpy(variable)
    return array.astype(np.float32) if array.dtype.kind == "V" else array  # bfloat16, which a file cannot name


def _under(prefix: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def _check(checkpoint: Checkpoint, what: str, variable: keras.Variable, value: np.ndarray | None) -> None:
    if value is None:
        raise CheckpointError(f"{checkpoint.path} has no {what}: it was written for another network")
    if tuple(value.shape) != tuple(variable.shape):
        raise CheckpointError(f"{checkpoint.path}: {what} is {tuple(value.shape)}, this network has "
                              f"{tuple(variable.shape)}")
