"""Plants faults in kernel files and asks whether a check notices."""

from __future__ import annotations

import faulthandler
import os
import signal
from collections.abc import Callable, Sequence

import torch

from kmrcnn.kernels import module
from tests.kernels.emulation.emulator import EmulationBuildError, Emulator

_CAUGHT, _SURVIVED, _NOT_BUILT = 0, 3, 4


def survivors(file: str, edits: Sequence[tuple[str, str]], check: Callable[[Emulator], None], *, checks: str = "",
              seconds: int = 60) -> list[str]:
    """The faults that a check does not notice; an empty list is what a test wants.

    Each fault is tried in a forked process, so that it may crash or hang.

    Args:
        file: the .cu (or common.cuh).
        edits: (text, replacement); each text must occur in the file exactly once.
        check: called with the emulator in use; passes on the unchanged file, and must raise AssertionError.
        checks: see `Emulator`.
        seconds: a check that takes longer counts as one that noticed.

    Raises:
        AssertionError: if the check fails on the unchanged file, a text does not occur once, or an edited file
            does not compile.
    """
    text = (module.FOLDER / file).read_text(encoding="utf-8")
    for old, _ in edits:
        assert text.count(old) == 1, f"{old!r} occurs {text.count(old)} times in {file}"
    assert _outcome(None, check, checks, seconds) == _SURVIVED, "the check fails on the unchanged file"
    outcomes = [_outcome(edit, check, checks, seconds) for edit in edits]
    assert _NOT_BUILT not in outcomes, f"{edits[outcomes.index(_NOT_BUILT)]} does not compile"
    return [f"{old!r} -> {new!r}" for (old, new), outcome in zip(edits, outcomes, strict=True) if outcome == _SURVIVED]


def _outcome(edit: tuple[str, str] | None, check: Callable[[Emulator], None], checks: str, seconds: int) -> int:
    child = os.fork()
    if child == 0:
        os._exit(_in_child(edit, check, checks, seconds))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return code if code in (_SURVIVED, _NOT_BUILT) else _CAUGHT


def _in_child(edit: tuple[str, str] | None, check: Callable[[Emulator], None], checks: str, seconds: int) -> int:
    faulthandler.disable()
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(seconds)
    torch.set_num_threads(1)  # a forked process has none of its parent's threads
    emulator = Emulator(checks)
    emulator.edits = [] if edit is None else [edit]
    try:
        with module.use(emulator.module):
            check(emulator)
    except EmulationBuildError:
        return _NOT_BUILT
    except BaseException:  # mostly AssertionError; nonsense out of a kernel may break the check's own code too
        return _CAUGHT
    return _SURVIVED
