"""MaskRCNN stopped and resumed: stages, folders, workers, images that cannot be read."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from kmrcnn.data import Compose, HorizontalFlip, ShapesDataset
from kmrcnn.engine.checkpoint import list_checkpoints, read_last
from kmrcnn.engine.replicas import Replicas
from kmrcnn.model import MaskRCNN
from tests.tiny import TinyConfig

ROOT = Path(__file__).resolve().parent.parent


class Stop(Exception):
    """Something breaks."""


class StopAt(keras.callbacks.Callback):
    """Breaks before a step, or does something else there."""

    def __init__(self, step: int, action=None):
        super().__init__()
        self._left, self._action = step, action

    def on_train_batch_begin(self, batch, logs=None):
        self._left -= 1
        if self._left < 0:
            self._left = 10**9
            if self._action is None:
                raise Stop
            self._action()


def _shapes(count: int = 10) -> ShapesDataset:
    dataset = ShapesDataset()
    dataset.load_shapes(count, 64, 64)
    dataset.prepare()
    return dataset


def _model(folder, **settings) -> MaskRCNN:
    config = TinyConfig()
    config.update({"STEPS_PER_EPOCH": 3, "IMAGES_PER_GPU": 1, "TRAIN_BN": None, "APPEND_GT_TO_ROIS": True,
                   "TRAIN_ROIS_PER_IMAGE": 6, **settings})
    return MaskRCNN("training", config, folder)


def _script(folder, stop: tuple | None = None, stages=(("heads", 1), ("all", 2)), dataset=None, optimizer=None,
            **settings) -> MaskRCNN:
    """What a user runs again after a stop; `stop`: arguments of StopAt."""
    model = _model(folder, **settings)
    callbacks = [StopAt(*stop)] if stop else []
    if optimizer:
        model.compile(optimizer=optimizer())
    model.histories = [model.train(
        dataset or _shapes(), None, None if optimizer else 1e-3, epochs, layers,
        augmentation=Compose([HorizontalFlip(0.5)]), custom_callbacks=callbacks, verbose=0, resume=True)
        for layers, epochs in stages]
    return model


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> MaskRCNN:
    """The script without a stop."""
    return _script(tmp_path_factory.mktemp("straight"))


# TensorFlow's own sums on a CPU differ in the last bits from run to run, also without a stop. That its state comes back
# in every bit is tested in tests/engine/test_resume.py.
EXACT = keras.backend.backend() != "tensorflow"


def _assert_equal(first: MaskRCNN, second: MaskRCNN) -> None:
    for one, other in zip(first.keras_model.get_weights(), second.keras_model.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=0 if EXACT else 1e-4)


def _names(model: MaskRCNN) -> list[str]:
    """Of the files in the log folder; TensorBoard has one for each start."""
    return sorted(name for name in os.listdir(model.log_dir) if not name.startswith("events."))


def test_stages_are_resumed_where_they_stopped(straight, tmp_path, capsys):
    """Stops in stage 1, between the stages, and in stage 2."""
    for stop in (2, 2, 1):
        with pytest.raises(Stop):
            _script(tmp_path / "resumed", (stop,))
    resumed = _script(tmp_path / "resumed")
    out = capsys.readouterr().out
    assert "Nothing left of layers='heads', epochs=1: the run is at epoch 1" in out
    assert "epoch 0, step 2 of the next (layers 'heads')" in out and "step 2 of the next (layers 'all')" in out
    _assert_equal(straight, resumed)
    assert os.listdir(tmp_path / "resumed") == [os.path.basename(resumed.log_dir)]
    assert _names(resumed) == _names(straight)
    assert {"mask_rcnn_tiny_0001.h5", "mask_rcnn_tiny_0002.h5", "log.csv", "state"} <= set(_names(resumed))
    texts = [Path(model.log_dir, "log.csv").read_text() for model in (straight, resumed)]
    assert texts[0] == texts[1] or not EXACT
    again = _script(tmp_path / "resumed")
    _assert_equal(straight, again)
    assert [history.epoch for history in again.histories] == [[], []] and again.epoch == 2


@pytest.mark.once
def test_an_optimizer_of_one_s_own_is_carried_from_stage_to_stage(tmp_path):
    def optimizer():
        return keras.optimizers.AdamW(1e-3, use_ema=True, ema_momentum=0.9)

    stages = (("all", 1), ("all", 2), ("heads", 3))
    straight = _script(tmp_path / "straight", stages=stages, optimizer=optimizer)
    for stop in (3, 3):  # the first step of stage 2, of stage 3
        with pytest.raises(Stop):
            _script(tmp_path / "resumed", (stop,), stages, optimizer=optimizer)
    _assert_equal(straight, _script(tmp_path / "resumed", stages=stages, optimizer=optimizer))


@pytest.mark.once
def test_sigterm_ends_with_143_and_a_checkpoint(straight, tmp_path):
    with pytest.raises(SystemExit) as caught:
        _script(tmp_path / "resumed", (1, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    assert caught.value.code == 143
    _assert_equal(straight, _script(tmp_path / "resumed"))


@pytest.mark.once
def test_a_killed_worker_ends_the_run_with_its_state_saved(tmp_path):
    def kill_workers():
        for line in subprocess.run(["ps", "-o", "pid=,args=", "--ppid", str(os.getpid())], capture_output=True,
                                   text=True, check=True).stdout.splitlines():
            if "kmrcnn.data.worker" in line:
                os.kill(int(line.split()[0]), signal.SIGKILL)

    with pytest.raises(RuntimeError, match="loader worker process was ended by signal 9"):
        _script(tmp_path / "resumed", (1, kill_workers), LOADER_WORKERS=2, LOADER_BACKEND="process",
                STEPS_PER_EPOCH=30)
    run, = (tmp_path / "resumed").iterdir()
    assert read_last(run / "state").notes["step"] >= 1
    with pytest.raises(ValueError, match="STEPS_PER_EPOCH: found 3, expected 30"):
        _script(tmp_path / "resumed")


@pytest.mark.once
def test_an_image_that_cannot_be_read_is_replaced_after_a_resume_too(tmp_path):
    class Broken(ShapesDataset):
        def load_image(self, image_id):
            if image_id == 3:
                raise OSError("image file is truncated")
            return super().load_image(image_id)

    def shapes():
        dataset = Broken()
        dataset.load_shapes(10, 64, 64)
        dataset.prepare()
        return dataset

    stages = (("heads", 1),)
    straight = _script(tmp_path / "straight", stages=stages, dataset=shapes(), STEPS_PER_EPOCH=10)
    with pytest.raises(Stop):
        _script(tmp_path / "resumed", (2,), stages, shapes(), STEPS_PER_EPOCH=10)
    _assert_equal(straight, _script(tmp_path / "resumed", stages=stages, dataset=shapes(), STEPS_PER_EPOCH=10))


@pytest.mark.once
def test_a_damaged_checkpoint_costs_some_steps(straight, tmp_path):
    with pytest.raises(Stop):
        _script(tmp_path / "resumed", (5,))
    run, = (tmp_path / "resumed").iterdir()
    path = list_checkpoints(run / "state")[0]
    os.truncate(os.path.join(path, "arrays.npz"), 99)
    with pytest.warns(UserWarning, match="0001-000002/arrays.npz is truncated.*Going on from the last good one.*0001-"):
        resumed = _script(tmp_path / "resumed")
    _assert_equal(straight, resumed)


@pytest.mark.once
def test_weights_of_a_run_are_a_start_unless_the_run_goes_on(tmp_path):
    """Only weights of a run of this NAME under model_dir set epoch and folder."""
    first = _script(tmp_path / "a", stages=(("heads", 1),))
    path = first.find_last()
    same = _model(tmp_path / "a")
    same.load_weights(path)
    assert (same.epoch, same.log_dir) == (1, first.log_dir)
    same.load_weights(path, resume=False)
    assert same.epoch == 0  # its folder gets a name of its own when training begins
    for other in (_model(tmp_path / "b"), _model(tmp_path / "a", NAME="tinier")):
        other.load_weights(path)
        assert other.epoch == 0 and os.path.dirname(other.log_dir) == other.model_dir
    same.train(_shapes(), None, 1e-3, 1, "heads", verbose=0)
    assert same.epoch == 1 and same.log_dir != first.log_dir and len(os.listdir(tmp_path / "a")) == 2


@pytest.mark.once
def test_a_run_without_state_goes_on_from_its_weights_with_a_warning(tmp_path):
    first = _script(tmp_path, stages=(("heads", 1),))
    os.rename(os.path.join(first.log_dir, "state"), tmp_path / "gone")
    with pytest.warns(UserWarning, match="no checkpoint of the whole state.*weights alone, at epoch 1"):
        second = _script(tmp_path)
    assert second.log_dir == first.log_dir and second.epoch == 2


@pytest.mark.once
def test_a_run_killed_before_its_first_checkpoint_begins_again_in_its_folder(tmp_path):
    (tmp_path / "tiny20250101T0000" / "state" / ".0000-000001.x.tmp").mkdir(parents=True)
    (tmp_path / "tiny20250101T0000" / "log.csv").write_text("epoch,loss\r\n1,2.0\r\n2,1")
    (tmp_path / "tiny20250101T0000" / ".half_a_weight_file.tmp").write_text("")
    model = _script(tmp_path, stages=(("heads", 1),))
    assert os.path.basename(model.log_dir) == "tiny20250101T0000"
    assert [line.split(",")[0] for line in Path(model.log_dir, "log.csv").read_text().splitlines()] == ["epoch", "1"]
    assert not [name for name in os.listdir(model.log_dir) if name.endswith(".tmp")]


@pytest.mark.once
def test_other_settings_are_mentioned_and_a_run_can_be_lengthened(tmp_path):
    with pytest.raises(Stop):
        _script(tmp_path, (2,), stages=(("all", 2),))
    with pytest.warns(UserWarning, match="other settings than before, so not exactly: BATCH_SIZE 1 -> 2, "
                                         "LEARNING_MOMENTUM 0.9 -> 0.5"):
        model = _script(tmp_path, stages=(("all", 3),), LEARNING_MOMENTUM=0.5, IMAGES_PER_GPU=2)
    assert model.epoch == 3
    assert [stage["epochs"] for stage in read_last(os.path.join(model.log_dir, "state")).notes["stages"]] == [3]


@pytest.mark.once
def test_another_stage_inside_an_epoch_is_refused(tmp_path):
    with pytest.raises(Stop):
        _script(tmp_path, (1,))
    with pytest.raises(ValueError, match="1 steps into epoch 1 of training 'heads', this call trains '5\\+'"):
        _script(tmp_path, stages=(("5+", 3),))


@pytest.mark.once
def test_interrupted_in_a_notebook_the_cell_can_be_run_again(tmp_path):
    straight = _script(tmp_path / "straight", stages=(("all", 2),))
    model = _model(tmp_path / "resumed")
    with pytest.raises(KeyboardInterrupt):
        model.train(_shapes(), None, 1e-3, 2, "all", augmentation=Compose([HorizontalFlip(0.5)]), verbose=0,
                    custom_callbacks=[StopAt(4, lambda: os.kill(os.getpid(), signal.SIGINT))], resume=True)
    model.train(_shapes(), None, 1e-3, 2, "all", augmentation=Compose([HorizontalFlip(0.5)]), verbose=0, resume=True)
    _assert_equal(straight, model)


@pytest.mark.once
def test_a_folder_that_cannot_be_made_stops_at_the_start(tmp_path):
    (tmp_path / "logs").write_text("a file")
    with pytest.raises(OSError, match="The run's folder .* cannot be made .Not a directory.; choose another model_dir"):
        _script(tmp_path / "logs")


@pytest.mark.once
def test_best_and_number_of_checkpoints_follow_the_config(tmp_path):
    model = _script(tmp_path, stages=(("heads", 4),), STEPS_PER_EPOCH=1, CHECKPOINT_KEEP=1, CHECKPOINT_BEST="loss")
    best = read_last(os.path.join(model.log_dir, "state")).notes["best"]
    kept = {os.path.basename(path) for path in list_checkpoints(os.path.join(model.log_dir, "state"))}
    assert kept == {"0004-000000", best["name"]} and best["of"] == "loss"


@pytest.mark.once
def test_killed_twice_and_resumed_the_weights_are_those_of_a_run_left_alone(tmp_path):
    """The short form of tools/kill_test.py."""
    result = subprocess.run([sys.executable, ROOT / "tools" / "kill_test.py", "--kills=2", "--epochs=2", "--steps=20",
                             f"--folder={tmp_path}"], capture_output=True, text=True, check=False, cwd=ROOT,
                            env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert result.returncode == 0, result.stdout + result.stderr
    assert "equal in every bit" in result.stdout and "2 kills" in result.stdout


@pytest.mark.once
def test_a_new_learning_rate_is_scaled_as_the_first_one(tmp_path):
    def rate(stop, learning_rate, **settings) -> float:
        model = _model(tmp_path, REFERENCE_BATCH_SIZE=8, **settings)
        with pytest.raises(Stop):
            model.train(_shapes(), None, learning_rate, 2, "heads", custom_callbacks=[StopAt(stop)], verbose=0,
                        resume=True)
        return float(model.keras_model.optimizer.learning_rate)

    assert rate(1, 8e-3) == pytest.approx(1e-3)
    assert rate(1, 16e-3) == pytest.approx(2e-3)
    assert rate(1, None, LEARNING_RATE=8e-4) == pytest.approx(1e-4)
    with pytest.warns(UserWarning, match="LEARNING_RATE 0.0008 -> 0.0016"):
        assert rate(1, None, LEARNING_RATE=16e-4) == pytest.approx(2e-4)


@pytest.mark.once
def test_other_processes_take_the_main_ones_folder(tmp_path):
    class Other(Replicas):
        """The second process, as far as it matters before the first step."""

        rank, shard = 1, (0, 1)

        def gather(self, value):
            return None

        def share(self, value):
            return "tiny20260131T0930"

    model = _model(tmp_path, STEPS_PER_EPOCH=1)
    model._trainer._replicas = Other()
    model.train(_shapes(), None, 1e-3, 1, "heads", verbose=0)
    assert model.log_dir == str(tmp_path / "tiny20260131T0930") and not os.listdir(tmp_path)


@pytest.mark.once
def test_a_call_with_nothing_left_leaves_the_checkpoints_alone(tmp_path):
    _script(tmp_path, stages=[("heads", 1)], STEPS_PER_EPOCH=1)
    model = _model(tmp_path)
    model.load_weights(model.find_last())
    assert model.train(_shapes(), None, 1e-3, 1, "heads", verbose=0).history == {}
    assert os.listdir(Path(model.log_dir) / "state") == ["0001-000000"]


@pytest.mark.once
def test_weights_alone_of_a_run_elsewhere_have_their_epoch(tmp_path):
    run = _script(tmp_path / "first", stages=[("heads", 1)], STEPS_PER_EPOCH=1).log_dir
    shutil.rmtree(Path(run) / "state")
    model = _model(tmp_path / "second", STEPS_PER_EPOCH=1)
    with pytest.warns(UserWarning, match="goes on from weights alone, at epoch 1"):
        history = model.train(_shapes(), None, 1e-3, 2, "heads", verbose=0, resume=run)
    assert history.epoch == [1] and model.log_dir == run
