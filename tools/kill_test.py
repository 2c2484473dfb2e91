"""Kill a training run again and again, resume it, and compare its weights with those of a run that was left alone.

    python tools/kill_test.py                      # 20 kills, a few minutes on one CPU core
    python tools/kill_test.py --kills=2 --devices=2

The run: a small network on generated shapes with augmentation, two loader workers, momentum, accumulated gradients and
two stages (heads, then all). Kills are SIGKILL at times drawn uniformly over what is left of the run's wall time; some
wait for the middle of an epoch or for a checkpoint that is being written. Exit status 0: all weights are equal in every
bit, and every checkpoint that was there after a kill could be read or was recognised as half-written.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NAME = "kill"
WRITING = "writing"  # a file that is there while a checkpoint is written
BEGUN = "begun"  # a file that is written when the child has started


def child(folder: Path, devices: int, epochs: int, steps: int, slow: bool) -> None:
    """The training script: the same one every time, with resume=True."""
    import keras

    from kmrcnn.data import Compose, HorizontalFlip, Rotate90, ShapesDataset
    from kmrcnn.engine import keeper
    from kmrcnn.model import MaskRCNN
    from tests.tiny import TinyConfig

    write = keeper.write_checkpoint

    def announced(*arguments):
        (folder / WRITING).touch()
        write(*arguments)
        (folder / WRITING).unlink()

    keeper.write_checkpoint = announced
    if slow:  # gives the killer time to hit
        flush = os.fsync
        os.fsync = lambda handle: (time.sleep(0.02), flush(handle))[1]

    config = TinyConfig()
    config.update({"NAME": NAME, "STEPS_PER_EPOCH": steps, "LOADER_WORKERS": 2, "GRADIENT_ACCUMULATION": 2,
                   "CHECKPOINT_MINUTES": 0.01, "GPU_COUNT": devices, "IMAGES_PER_GPU": 2 // devices,
                   "TRAIN_BN": None, "APPEND_GT_TO_ROIS": True})
    dataset = ShapesDataset()
    dataset.load_shapes(24, 64, 64)
    dataset.prepare()
    model = MaskRCNN("training", config, folder / "logs")
    (folder / BEGUN).touch()
    for layers, last in (("heads", epochs // 2), ("all", epochs)):
        model.train(dataset, None, 1e-3, last, layers, augmentation=Compose([HorizontalFlip(0.5), Rotate90(0.5)]),
                    custom_callbacks=[keras.callbacks.ReduceLROnPlateau("loss", patience=1, factor=0.7)],
                    verbose=0, resume=True)
    if model.replicas.is_main:
        model.save_weights(folder / "final.h5")


def start(folder: Path, args: argparse.Namespace, slow: bool = False) -> subprocess.Popen:
    """The child, in a process group of its own with its workers."""
    folder.mkdir(parents=True, exist_ok=True)
    for mark in (WRITING, BEGUN):
        (folder / mark).unlink(missing_ok=True)
    command = [sys.executable, __file__, "--child", str(folder), f"--devices={args.devices}",
               f"--epochs={args.epochs}", f"--steps={args.steps}", *(["--slow"] if slow else [])]
    with open(folder / "output.txt", "a") as output:
        return subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)


def kill(process: subprocess.Popen) -> None:
    """SIGKILL to the child and everything it started, which may have sessions of its own."""
    for number in (*descendants(process.pid), process.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)
    process.wait()


def descendants(parent: int) -> list[int]:
    """Numbers of the processes that a process has started, and those have."""
    rows = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout.splitlines()
    parents = dict(map(int, row.split()) for row in rows)
    found = [parent]
    for number in found:
        found += [child for child, its in parents.items() if its == number]
    return found[1:]


def place(folder: Path) -> tuple[str, list[str]]:
    """(the last good checkpoint, what is damaged); no checkpoint that has its final name may be damaged."""
    from kmrcnn.engine.checkpoint import CheckpointError, list_checkpoints, read_checkpoint

    good, bad = "-", []
    for run in (folder / "logs").glob(f"{NAME}2*"):
        for path in reversed(list_checkpoints(run / "state")):
            try:
                read_checkpoint(path)
                good = os.path.basename(path)
            except CheckpointError as error:
                bad.append(str(error))
    return good, bad


def inside_epoch(folder: Path) -> bool:
    """Whether the newest checkpoint is inside an epoch."""
    from kmrcnn.engine.checkpoint import list_checkpoints

    newest = [path for run in (folder / "logs").glob(f"{NAME}2*") for path in list_checkpoints(run / "state")[:1]]
    return any(os.path.basename(path).split("-")[-1].strip("0") for path in newest)


def wait(process: subprocess.Popen, seconds: float, until=lambda: False) -> bool:
    """Wait for a time or an event. Returns whether the child still runs."""
    end = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < end and not until():
        time.sleep(0.002)
    return process.poll() is None


def kill_again_and_again(folder: Path, args: argparse.Namespace, aims: list[str], draw: random.Random, wall: float,
                         ready: float) -> list[str]:
    """Run, kill and resume until the aims or the run are at their end.

    Args:
        aims: what each kill waits for: "any", "epoch" or "write"; those that were tried are taken out.
        wall: seconds that the run takes alone. ready: of these, until it begins to train.

    Returns:
        What each kill hit, "damaged" if a checkpoint with its final name could not be read.
    """
    # On average two kills' share of the run, and never all of it: some of it is done twice.
    hits, longest = [], (wall - ready) * min(4 / args.kills, 0.6)
    while aims:
        aim, begin = aims[0], time.monotonic()
        process = start(folder, args, slow=aim == "write")
        if aim == "any":
            alive = wait(process, draw.uniform(0, ready + longest))
        else:
            alive = wait(process, 120, (folder / BEGUN).exists) and wait(process, draw.uniform(0, longest))
        if alive and aim == "epoch":
            alive = wait(process, 60, lambda: inside_epoch(folder)) and wait(process, draw.uniform(0, 0.1))
        if alive and aim == "write":
            alive = wait(process, 60, (folder / WRITING).exists) and wait(process, draw.uniform(0, 0.1))
        if not alive:
            break
        kill(process)
        good, bad = place(folder)
        hits.append("damaged" if bad else "write" if (folder / WRITING).exists() else
                    "epoch" if good.split("-")[-1].strip("0") else "other")
        print(f"{args.kills - len(aims) + 1:5d}  {aim:6s} {time.monotonic() - begin:7.1f} s   {hits[-1]:8s} {good:12s}"
              f"{'; '.join(bad)}", flush=True)
        aims.pop(0)
    return hits


def finish(folder: Path, args: argparse.Namespace) -> float:
    """Run the child to its end; returns the seconds it took."""
    begin = time.monotonic()
    if start(folder, args).wait() != 0:
        raise SystemExit(f"the run failed:\n{(folder / 'output.txt').read_text()[-3000:]}")
    return time.monotonic() - begin


def compare(first: Path, second: Path) -> list[str]:
    """Names of the weights that differ."""
    import h5py

    names: list[str] = []
    with h5py.File(first) as left, h5py.File(second) as right:
        def look(name: str, item) -> None:
            if isinstance(item, h5py.Dataset) and item[()].tobytes() != right[name][()].tobytes():
                names.append(name)

        left.visititems(look)
    return names


def main() -> None:
    """Command line; see the top of this file."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--kills", type=int, default=20)
    arguments.add_argument("--devices", type=int, choices=(1, 2), default=1)
    arguments.add_argument("--epochs", type=int, default=10, help="of both stages together (default: %(default)s)")
    arguments.add_argument("--steps", type=int, default=30, help="of an epoch (default: %(default)s)")
    arguments.add_argument("--seed", type=int, default=0, help="of the times of the kills")
    arguments.add_argument("--folder", type=Path, help="(default: a temporary one)")
    arguments.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    arguments.add_argument("--slow", action="store_true", help=argparse.SUPPRESS)
    args = arguments.parse_args()
    sys.path.insert(0, str(ROOT))
    from kmrcnn.engine import launch

    if args.child:
        launch.run(functools.partial(child, args.child, args.devices, args.epochs, args.steps, args.slow), args.devices)
        return
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as temporary:
        sys.exit(prove(args.folder or Path(temporary), args))


def prove(folder: Path, args: argparse.Namespace) -> int:
    """The run alone, killed runs until there were enough kills, and comparisons. Returns the exit status."""
    begin = time.time()
    wall = finish(folder / "alone", args)
    ready = (folder / "alone" / BEGUN).stat().st_mtime - begin
    draw = random.Random(args.seed)
    aims = ["write"] * max(1, args.kills // 5) + ["epoch"] * max(1, args.kills // 4)
    aims = (aims + ["any"] * args.kills)[: args.kills]
    draw.shuffle(aims)
    print(f"Left alone: {wall:.1f} s, of which {ready:.1f} s to start.")
    print(" kill  aim      after     hit      last good")
    hits, wrong, runs = [], [], 0
    while aims:
        runs += 1
        killed = folder / f"killed{runs}"
        hits += kill_again_and_again(killed, args, aims, draw, wall, ready)
        print(f"Run {runs} ended {finish(killed, args):.1f} s after its last start.")
        wrong += differences(folder / "alone", killed)
    print(f"{len(hits)} kills in {runs} runs: {hits.count('epoch')} resumed inside an epoch, {hits.count('write')} "
          f"while a checkpoint was written, {hits.count('damaged')} left a damaged one.")
    print("\n".join(wrong) or "Final weights and logs are equal in every bit.")
    return int(bool(wrong) or "damaged" in hits)


def differences(alone: Path, killed: Path) -> list[str]:
    """What is not equal of two runs: weights and log."""
    weights = compare(alone / "final.h5", killed / "final.h5")
    logs = [next((folder / "logs").glob(f"{NAME}2*/log.csv")).read_text() for folder in (alone, killed)]
    found = [f"{killed.name}: {len(weights)} weights differ, for instance {weights[0]}"] if weights else []
    return found + ([] if logs[0] == logs[1] else [f"{killed.name}: log.csv differs"])


if __name__ == "__main__":
    main()
