"""Kill a training run again and again, resume it, and compare its weights with those of a run that was left alone.

    python tools/kill_test.py                      # 20 kills, about ten minutes on one CPU core
    python tools/kill_test.py --kills=2 --devices=2

The run: a small network on generated shapes with augmentation, two loader workers, momentum, accumulated gradients and
two stages (heads, then all). Kills are SIGKILL at times drawn uniformly over the wall time that the run takes with all
its starts, so they hit starts, steps and writes as these take their share. Checkpoints are written every 0.6 seconds,
to a disk that is made slow, so that a good part of the time goes into them. Exit status 0: all weights and logs are
equal in every bit, and every checkpoint that was there after a kill could be read or was recognised as half-written.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
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
SLOW = 0.1  # seconds that every file of a checkpoint takes longer to reach the disk


def child(folder: Path, devices: int, epochs: int, steps: int) -> None:
    """The training script: the same one every time, with resume=True."""
    import keras

    from kmrcnn.data import Compose, HorizontalFlip, Rotate90, ShapesDataset
    from kmrcnn.engine import keeper
    from kmrcnn.model import MaskRCNN
    from tests.tiny import TinyConfig

    write, flush = keeper.write_checkpoint, os.fsync

    def announced(*arguments):
        (folder / WRITING).touch()
        os.fsync = lambda handle: (time.sleep(SLOW), flush(handle))[1]
        write(*arguments)
        os.fsync = flush
        (folder / WRITING).unlink()

    keeper.write_checkpoint = announced
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


def start(folder: Path, args: argparse.Namespace) -> subprocess.Popen:
    """The child, in a process group of its own with its workers."""
    folder.mkdir(parents=True, exist_ok=True)
    for mark in (WRITING, BEGUN):
        (folder / mark).unlink(missing_ok=True)
    command = [sys.executable, __file__, "--child", str(folder), f"--devices={args.devices}",
               f"--epochs={args.epochs}", f"--steps={args.steps}"]
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


def kill_again_and_again(folder: Path, args: argparse.Namespace, waits: list[float]) -> list[str]:
    """Run, kill and resume until the waits or the run are at their end.

    Args:
        waits: seconds from each start to its kill; those that are over are taken out.

    Returns:
        What each kill hit: "write", "epoch" if the run goes on inside one, "other", or "damaged" if a checkpoint with
        its final name could not be read.
    """
    hits: list[str] = []
    while waits:
        process, begin = start(folder, args), time.monotonic()
        while process.poll() is None and time.monotonic() - begin < waits[0]:
            time.sleep(0.002)
        if process.poll() is not None:
            waits[0] -= time.monotonic() - begin
            break
        kill(process)
        good, bad = place(folder)
        hits.append("damaged" if bad else "write" if (folder / WRITING).exists() else
                    "epoch" if good.split("-")[-1].strip("0") else "other")
        print(f"{args.kills - len(waits) + 1:5d} {waits.pop(0):7.2f} s   {hits[-1]:8s} {good:12s}{'; '.join(bad)}",
              flush=True)
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
    arguments.add_argument("--epochs", type=int, default=40, help="of both stages together (default: %(default)s)")
    arguments.add_argument("--steps", type=int, default=30, help="of an epoch (default: %(default)s)")
    arguments.add_argument("--seed", type=int, default=0, help="of the times of the kills")
    arguments.add_argument("--folder", type=Path, help="(default: a temporary one)")
    arguments.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    args = arguments.parse_args()
    sys.path.insert(0, str(ROOT))
    from kmrcnn.engine import launch

    if args.child:
        launch.run(functools.partial(child, args.child, args.devices, args.epochs, args.steps), args.devices)
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
    length = wall + args.kills * ready
    times = [0.0, *sorted(draw.uniform(0, length) for _ in range(args.kills))]
    waits = [later - earlier for earlier, later in itertools.pairwise(times)]
    print(f"Left alone: {wall:.1f} s, of which {ready:.1f} s to start; {args.kills} kills within {length:.1f} s.")
    print(" kill    after     hit      last good")
    hits, wrong, runs = [], [], 0
    while waits:
        runs += 1
        killed = folder / f"killed{runs}"
        hits += kill_again_and_again(killed, args, waits)
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
