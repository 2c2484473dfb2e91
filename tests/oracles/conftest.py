"""What the comparisons with other systems share."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def torchvision():
    """torchvision's package; skips the test where it is not installed."""
    pytest.importorskip("torch")
    from tests.oracles.torchvision_cpu import load

    module = load()
    if module is None:
        pytest.skip("torchvision not found: pip install --no-deps torchvision==0.28.0, or set KMRCNN_TORCHVISION")
    return module
