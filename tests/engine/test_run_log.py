"""Logs of steps and epochs: what they say, and that a killed and resumed run has each of them once."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys

import keras
import numpy as np
import pytest

from kmrcnn.engine.json_lines import JSONLines, read_json_lines
from kmrcnn.engine.learning_rate import RateReader
from kmrcnn.engine.loop import fit
from kmrcnn.engine.pace import Pace
from kmrcnn.engine.place import Place
from kmrcnn.engine.run_log import RunLog
from kmrcnn.engine.step import build_train_step
from tests.conftest import ROOT
from tests.engine.fakes import Batches, build_model
from tests.engine.logged_run import EPOCHS, EVERY, STEPS, run

_OF_THE_CLOCK = {"seconds_per_step", "images_per_second", "eta_seconds", "memory_mib", "device_memory_mib"}


def _events(folder):
    """All (step, tag, value) of a folder of events, files in TensorBoard's order."""
    from tensorboard.compat.proto.event_pb2 import Event

    found = []
    for path in sorted(folder.iterdir()):
        data, place = path.read_bytes(), 0
        while place < len(data):
            size = struct.unpack("<Q", data[place : place + 8])[0]
            event = Event.FromString(data[place + 12 : place + 12 + size])
            place += size + 16
            found += [(event.step, value.tag, value.image.encoded_image_string or value.simple_value)
                      for value in event.summary.value]
        assert place == len(data), f"{path} ends inside a record"
    return [row for row in found if row[1].removeprefix("step/") not in _OF_THE_CLOCK]


def _lines(folder):
    return [{key: value for key, value in row.items() if key not in _OF_THE_CLOCK}
            for row in read_json_lines(folder / "metrics.jsonl")]


@pytest.mark.once
def test_a_killed_and_resumed_run_has_every_line_once(tmp_path):
    """Killed during an evaluation, and inside an epoch behind lines that no checkpoint has seen."""
    pytest.importorskip("tensorboard")
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    straight.mkdir()
    killed.mkdir()
    run(straight)
    for die in ("measure:1", "27"):
        process = subprocess.run([sys.executable, "-m", "tests.engine.logged_run", str(killed), die], cwd=ROOT,
                                 env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])})
        assert process.returncode == -signal.SIGKILL
    before = _lines(killed)[-1]
    assert before["step"] == 26, "the run was to be killed behind lines that are written again"
    with open(killed / "metrics.jsonl", "a") as file:
        file.write('{"kind": "step", "st')
    with open(sorted((killed / "events").iterdir())[-1], "ab") as file:
        file.write(struct.pack("<Q", 1000) + b"cut off")
    run(killed)

    assert (killed / "log.csv").read_text() == (straight / "log.csv").read_text()
    lines = _lines(killed)
    assert lines == _lines(straight)
    assert [row["step"] for row in lines if row["kind"] == "step"] == list(range(EVERY, STEPS * EPOCHS + 1, EVERY))
    assert [row["epoch"] for row in lines if row["kind"] == "epoch"] == [1, 2, 3]
    events = _events(killed / "events")
    assert len({row[:2] for row in events}) == len(events) and sorted(events) == sorted(_events(straight / "events"))


@pytest.mark.once
def test_tensorboard_s_own_reader_sees_every_step_once(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from kmrcnn.engine.event_file import EventFile

    for begin, value in ((0, 1.0), (4, 2.0)):  # the second goes on behind step 4 and epoch 2, in the same second
        writer = EventFile(tmp_path)
        writer.begin(Place(begin, begin // 2, begin))
        for step in range(begin + 1, 8):
            writer.step(step, 1, {"loss": value})
            if step % 2 == 0:
                writer.epoch(step, step // 2, {"loss": value}, {"segm_AP": {"cat": value}},
                             {"detections/0": np.full((2, 3, 3), 7, np.uint8)})
        writer.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("step/loss")] == [
        (1, 1), (2, 1), (3, 1), (4, 1), (5, 2), (6, 2), (7, 2)]
    assert [(event.step, event.value) for event in events.Scalars("segm_AP/cat")] == [(2, 1), (4, 1), (6, 2)]
    assert (events.Images("detections/0")[0].height, events.Images("detections/0")[0].width) == (2, 3)


@pytest.mark.once
@pytest.mark.parametrize("rest", [bytes(40), b"\xff" * 64, "damaged"])
def test_what_a_crash_leaves_behind_the_events_is_taken_out(tmp_path, rest):
    """Zeros, random lengths, and a record with other bytes inside."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from kmrcnn.engine.event_file import EventFile

    writer = EventFile(tmp_path)
    writer.begin(Place(0, 0, 0))
    for step in (1, 2, 3):
        writer.step(step, 1, {"loss": 1.0})
    writer.close()
    (path,) = tmp_path.iterdir()
    data = path.read_bytes()
    path.write_bytes(data[:-30] + b"\xff" * 26 + data[-4:] if rest == "damaged" else data + rest)
    writer = EventFile(tmp_path)
    writer.begin(Place(2 if rest == "damaged" else 3, 0, 0))
    writer.step(4, 1, {"loss": 2.0})
    writer.close()
    assert data.startswith(path.read_bytes())
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    steps = (1, 2) if rest == "damaged" else (1, 2, 3)
    assert [(event.step, event.value) for event in events.Scalars("step/loss")] == [*((s, 1) for s in steps), (4, 2)]


class _Lines:
    """A writer that keeps what it gets."""

    path = "here"

    def __init__(self):
        self.steps, self.places = [], []

    def begin(self, place):
        self.places.append(place)

    def step(self, step, epoch, values):
        self.steps.append((step, epoch, values))

    def epoch(self, *arguments):
        pass

    def flush(self):
        pass

    close = flush


def _trained(optimizer, accumulation=1, every=6, **settings):
    from kmrcnn.engine.execution import Execution

    model, lines, read = build_model(), _Lines(), []
    log = RunLog([lines], every=every, images=4, accumulation=accumulation)
    log.on_step_read = lambda step, scalars, call=log.on_step_read: (read.append(scalars), call(step, scalars))
    model.compile(optimizer=optimizer)
    step = build_train_step(model, optimizer, {}, 0.0, execution=Execution(accumulation=accumulation))
    fit(model, step, Batches(), optimizer=optimizer, verbose=0, callbacks=[log],
        **{"epochs": 3, "steps_per_epoch": 10, **settings})
    return lines, read


def test_lines_have_medians_of_twenty_steps_and_the_rate_of_their_step():
    schedule = keras.optimizers.schedules.ExponentialDecay(0.05, 1, 0.9)
    lines, read = _trained(keras.optimizers.SGD(schedule), accumulation=2)
    assert [row[:2] for row in lines.steps] == [(6, 1), (12, 2), (18, 2), (24, 3), (30, 3)]
    assert lines.places == [Place(0, 0, 0)]
    for step, _, values in lines.steps:
        last = [scalars["second_loss"] for scalars in read[max(0, step - 20) : step]]
        assert values["second_loss"] == pytest.approx(np.median(last))
        assert values["learning_rate"] == pytest.approx(0.05 * 0.9 ** ((step - 1) // 2), rel=1e-5)
        assert values["eta_seconds"] == pytest.approx(values["seconds_per_step"] * (30 - step), abs=0.1)
        assert values["memory_mib"] > 10


def test_a_rate_that_a_callback_sets_is_seen():
    rate = RateReader()
    optimizer = keras.optimizers.SGD(0.5)
    optimizer.learning_rate = 0.25
    rate.synced(optimizer, 0)
    assert rate.start(optimizer, 7)() == 0.25


@pytest.mark.once
def test_pace_is_a_median_and_pauses_do_not_count():
    times = iter([0, 2, 4, 100, 102, 1000, 1002.0])
    pace = Pace(8, lambda: next(times))
    assert pace.read(5) == {}
    for _ in range(5):
        pace.tick()
    pace.pause()
    pace.tick()
    pace.tick()
    assert pace.read(5) == {"seconds_per_step": 2, "images_per_second": 4, "eta_seconds": 10}


@pytest.mark.once
@pytest.mark.parametrize(("steps", "seconds"), [(2, None), (3, None), (6, 5.0)])
def test_the_pace_is_that_of_a_device_whose_values_are_read_late(steps, seconds):
    """Two steps are handed over at once; then every 5 s one of them is read; the last two are read together."""
    now, log = 0.0, RunLog([])
    log._pace = Pace(1, lambda: now)
    log.set_params({"steps": steps, "epochs": 1})
    log.on_epoch_begin(0)
    for step in range(steps):
        if step >= 2:
            now += 5
            log.on_step_read(step - 2, {"loss": 1.0})
        log.on_train_batch_end(step)
    for step in range(max(0, steps - 2), steps):
        now += 0.001
        log.on_step_read(step, {"loss": 1.0})
    log.on_epoch_end(0)
    assert log._pace.read(0).get("seconds_per_step") == seconds


@pytest.mark.once
def test_json_lines_are_json_also_where_a_value_is_not_finite(tmp_path):
    lines = JSONLines(tmp_path / "a.jsonl")
    lines.step(1, 1, {"loss": float("nan")})
    lines.epoch(2, 1, {"loss": 1.0}, {"segm_AP": {"cat": float("nan")}}, {})
    rows = [json.loads(line, parse_constant=pytest.fail) for line in open(lines.path)]
    assert rows[0]["loss"] is None and rows[1]["segm_AP"] == {"cat": None}


@pytest.mark.once
def test_damaged_lines_are_dropped_when_a_run_goes_on(tmp_path):
    log = JSONLines(tmp_path / "metrics.jsonl")
    log.step(1, 1, {"loss": 2.0})
    with open(log.path, "ab") as file:
        file.write(b"\0\0\xff{\n[3]\n")
    log.step(2, 1, {"loss": 1.0})
    assert [record["step"] for record in read_json_lines(log.path)] == [1, 2]
    log.begin(Place(1, 0, 0))
    assert [json.loads(line)["step"] for line in open(log.path)] == [1]


@pytest.mark.once
@pytest.mark.parametrize("steps", [4, 20])
def test_lines_of_finished_epochs_are_kept_where_epochs_get_another_length(tmp_path, steps):
    log = JSONLines(tmp_path / "metrics.jsonl")
    for epoch in (1, 2, 3):
        log.step(10 * epoch, epoch, {"loss": 1.0})
        log.epoch(10 * epoch, epoch, {"loss": 1.0}, {}, {})
    log.begin(Place(2 * steps, 2, 2 * steps))
    assert [(row["kind"], row["epoch"]) for row in read_json_lines(log.path)] == [
        ("step", 1), ("epoch", 1), ("step", 2), ("epoch", 2)]


@pytest.mark.once
def test_a_log_that_cannot_be_written_ends_alone(tmp_path):
    (tmp_path / "a").mkdir()
    log = RunLog([JSONLines(tmp_path / "a"), good := _Lines()], every=1)
    log.set_params({"steps": 5, "epochs": 1})
    log.set_model(keras.Model())
    log.on_epoch_begin(0)
    with pytest.warns(UserWarning, match="a could not be written: Is a directory. This log ends here"):
        log.on_train_batch_begin(0)
    log.on_step_read(0, {"loss": 1.0})
    assert len(good.steps) == 1


@pytest.mark.once
def test_without_tensorboard_one_message_says_so(tmp_path, monkeypatch):
    from kmrcnn.engine.logs import make_logs
    from tests.tiny import TinyConfig

    monkeypatch.setitem(sys.modules, "tensorboard.summary.writer.record_writer", None)
    with pytest.warns(UserWarning, match="tensorboard is not installed"):
        make_logs(tmp_path, TinyConfig())
