"""Scalars from a GPU to the host through page-locked memory: whoever reads them waits for their step only."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch


@torch.no_grad()
def start(scalars: Mapping[str, torch.Tensor]) -> Callable[[], dict[str, float]]:
    """Begin to copy; the result waits for the end of the copy and gives floats.

    `float(tensor)` would wait for all work that the stream has by then, the steps behind included.
    """
    names = list(scalars)
    values = torch.stack([torch.as_tensor(scalars[name]).detach().to("cuda", torch.float32) for name in names])
    host = torch.empty(len(names), pin_memory=True)
    host.copy_(values, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()

    def read() -> dict[str, float]:
        copied.synchronize()
        return dict(zip(names, host.tolist(), strict=True))

    return read
