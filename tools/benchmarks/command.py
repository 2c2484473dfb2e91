"""The command line of `tools/benchmark.py`. Nothing here loads a backend before its threads are limited."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tools.benchmarks import UsageError, report

BACKENDS = ("torch", "tensorflow", "jax")
PRECISIONS = ("float32", "bfloat16", "float16")
ENGINES = ("auto", "graph", "compiled", "traced", "eager")
PEERS = ("twin", "torchvision")
_SCRIPT = Path(__file__).resolve().parent.parent / "benchmark.py"
_COMMANDS = {
    "train": "the training step of Mask R-CNN R50-FPN",
    "detect": "detection by Mask R-CNN R50-FPN: the network, and all from images to pasted masks",
    "overhead": "forward pass and training step of the R50-FPN trunk on small images",
    "loader": "what reading training images costs",
}


def main(argv: Sequence[str]) -> None:
    """Parse, measure, report."""
    parser = build_parser(argv)
    arguments = parser.parse_args(argv)
    try:
        facts, rows = run_backends(arguments, argv) if arguments.backends else run(arguments)
    except UsageError as error:
        parser.error(str(error))
    print(report.headline(facts))
    print(report.markdown(rows) if arguments.markdown else report.table(rows))
    if arguments.json:
        report.write_json(arguments.json, facts, rows)


def run(arguments: argparse.Namespace) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Facts about this process, and the rows of what it measured."""
    if arguments.threads:
        limit_threads(arguments.threads)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import kmrcnn  # noqa: F401  (chooses the backend)

    rows = importlib.import_module(f"tools.benchmarks.{arguments.command}").run(arguments)
    from tools.benchmarks.device import processor

    device = next((row["device"] for row in rows if "device" in row), None) or processor()
    return report.environment(vars(arguments), device), rows


def run_backends(arguments: argparse.Namespace, argv: Sequence[str]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The same in one process a backend, one after the other; their rows together.

    Raises:
        subprocess.CalledProcessError: one of them failed.
    """
    facts, rows = {}, []
    with tempfile.TemporaryDirectory() as folder:
        for backend in arguments.backends:
            path = os.path.join(folder, f"{backend}.json")
            # Of options given twice the last counts. Peers are torch's, and the loader has none.
            alone = backend != "torch" and arguments.command != "loader"
            own = ["--backends", "", "--json", path, *(["--peers", "none"] if alone else [])]
            subprocess.run([sys.executable, str(_SCRIPT), *argv, *own], check=True, stdout=subprocess.DEVNULL,
                           env={**os.environ, "KERAS_BACKEND": backend})
            with open(path, encoding="utf-8") as file:
                found = json.load(file)
            rows += found.pop("rows")
            facts = facts or found
    return facts, rows


def limit_threads(count: int) -> None:
    """Let the backend, which is not loaded yet, use `count` threads. JAX knows one and all only."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TF_NUM_INTRAOP_THREADS",
                 "TF_NUM_INTEROP_THREADS"):
        os.environ[name] = str(count)
    if count == 1:
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false".strip()


def build_parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    """The parser; the loader's flags are its own and are read only where `argv` asks for it."""
    parser = argparse.ArgumentParser(prog="benchmark.py", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in _COMMANDS.items():
        command = commands.add_parser(name, help=text, description=f"Measure {text}.")
        _output_flags(command)
        if name == "loader":
            if argv[:1] == [name]:
                importlib.import_module("tools.benchmarks.loader").add_arguments(command)
        else:
            _network_flags(command, 64 if name == "overhead" else 1024)
    return parser


def _output_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", metavar="FILE", help="write everything that was measured")
    parser.add_argument("--markdown", action="store_true", help="print the table as docs/benchmarks.md has it")
    parser.add_argument("--threads", type=_positive, metavar="N", help="threads of the backend")
    parser.add_argument("--backends", type=_names(BACKENDS), metavar="torch,tensorflow,jax",
                        help="one process each, rows together; by default this process with KERAS_BACKEND")


def _network_flags(parser: argparse.ArgumentParser, size: int) -> None:
    parser.add_argument("--batch", type=_positives, default=[1], metavar="1,2,8", help="images of a batch")
    parser.add_argument("--size", type=image_size, default=(size, size), metavar="512 or 512x768",
                        help=f"sides of the images, default {size}")
    parser.add_argument("--precision", type=_names(PRECISIONS), default=["float32"], metavar="float32,bfloat16")
    parser.add_argument("--engine", type=_names(ENGINES), default=["auto"], metavar="auto,traced",
                        help=f"of ours, in turns: {', '.join(ENGINES)}")
    parser.add_argument("--images", default="random", metavar="random or FOLDER",
                        help="random images, or a folder in COCO's layout (2017)")
    parser.add_argument("--peers", type=_peers, metavar="twin,torchvision or none",
                        help="what to compare with; by default what can run here")
    parser.add_argument("--layers", default="3+", help="what trains: heads, 5+, 4+, 3+ (default), all")
    parser.add_argument("--weights", metavar="FILE", help="of a network with 91 classes; random without it")
    parser.add_argument("--repeat", type=_positive, default=10, metavar="N", help="timed repetitions, default 10")
    parser.add_argument("--warmup", type=_positive, default=3, metavar="N", help="calls before these, default 3")
    parser.add_argument("--calls", type=_positive, default=1, metavar="N",
                        help="calls of a repetition, between which nothing waits for the device; default 1")
    parser.add_argument("--steps", type=_positive, metavar="N", help='length of the run that engine "auto" plans for')
    parser.add_argument("--small", action="store_true", help="a small network, to try the tool")


def image_size(text: str) -> tuple[int, int]:
    """"512" or "512x768" -> (height, width).

    Raises:
        ArgumentTypeError: it is something else, or a side is no multiple of 32.
    """
    sides = [int(part) if part.isdecimal() else 0 for part in text.split("x")]
    if len(sides) > 2 or any(side < 64 or side % 32 for side in sides):
        raise argparse.ArgumentTypeError(f"expected multiples of 32 from 64 on, as 512 or 512x768, found {text!r}")
    return sides[0], sides[-1]


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, found {text!r}")
    return int(text)


def _positives(text: str) -> list[int]:
    return [_positive(part) for part in text.split(",")]


def _names(known: Sequence[str]) -> Any:
    """Parses a comma list of known names; an empty text is an empty list."""
    def parse(text: str) -> list[str]:
        names = [name for name in text.split(",") if name]
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(known)}")
        return names

    return parse


def _peers(text: str) -> list[str]:
    return [] if text == "none" else _names(PEERS)(text)
