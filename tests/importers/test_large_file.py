"""A file of the published size: loading takes little time and memory beyond the model and the file."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from kmrcnn.config import Config
from kmrcnn.importers.torch_file import write_torch_file
from kmrcnn.model import MaskRCNN
from tests.importers import families as f
from tests.importers.test_formats import V1

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def _kilobytes(kind: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{kind}:"))
    return int(line.split()[1])


@pytest.mark.long
@pytest.mark.skipif(not _RESET.exists(), reason="the peak of memory is read from Linux' /proc")
def test_time_and_memory_of_resnet_50(tmp_path):
    config = Config.from_dict({"NAME": "coco", "PRESET": "torchvision", "NUM_CLASSES": 91, "IMAGES_PER_GPU": 1})
    rng, path = np.random.default_rng(0), tmp_path / "maskrcnn_resnet50_fpn.pth"
    write_torch_file(path, {row[0]: rng.random(row[1], np.float32) for row in f.table(V1, f.torchvision(1))})
    model = MaskRCNN("inference", config, tmp_path)
    _RESET.write_text("5")  # the peak starts again from here
    before, start = _kilobytes("VmRSS"), time.monotonic()
    report = model.load_weights(path)
    seconds, peak = time.monotonic() - start, _kilobytes("VmHWM") - before
    assert len(report.loaded) == 307 and not report.missing
    assert seconds < 5
    assert peak * 1024 <= 2.5 * path.stat().st_size
