"""Batch normalisation with the statistics of a batch that is spread over processes, as a torch op.

Each process finds mean and variance of its own rows; they are merged as Chan, Golub & LeVeque (1983) merge samples, so
that large means cost no accuracy. One sum over the processes forward, one backward.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from kmrcnn.ops.torch_collectives import all_reduce_sum

_library = torch.library.Library("kmrcnn", "FRAGMENT")
_library.define("sync_batch_norm(Tensor x, Tensor gamma, Tensor beta, Tensor centre, float epsilon, str group)"
                " -> (Tensor, Tensor, Tensor, Tensor)")
_library.define("sync_batch_norm_gradient(Tensor slopes, Tensor x, Tensor gamma, Tensor mean, Tensor variance,"
                " Tensor count, float epsilon, str group) -> (Tensor, Tensor, Tensor)")

_ROWS = (0, 1, 2)


def sync_batch_norm(x: torch.Tensor, gamma: torch.Tensor, beta: torch.Tensor, centre: torch.Tensor, epsilon: float,
                    group: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Batch normalisation of x (B, H, W, C) float32, whose batch is that of all processes of a group together.

    Args:
        gamma, beta: (C,) float32. Their gradients are those of the own rows.
        centre: (C,) float32, near the mean, the same in all processes: the moving mean. No gradient.

    Returns:
        (y, mean, biased variance); no gradient comes through the last two.
    """
    y, mean, variance, _ = torch.ops.kmrcnn.sync_batch_norm(x, gamma, beta, centre, epsilon, group)
    return y, mean.detach(), variance.detach()


def _forward(x: torch.Tensor, gamma: torch.Tensor, beta: torch.Tensor, centre: torch.Tensor, epsilon: float,
             group: str) -> tuple[torch.Tensor, ...]:
    own_mean, own_variance = _statistics(x)
    rows, offset = float(x.numel() // x.shape[-1]), own_mean - centre
    count = torch.full((1,), rows, device=x.device)
    sums = all_reduce_sum(torch.cat([offset * rows, (own_variance + offset * offset) * rows, count]), group)
    channels = x.shape[-1]
    count = sums[2 * channels :].clone()
    offset, square = sums[:channels] / count, sums[channels : 2 * channels] / count
    variance = (square - offset * offset).clamp_(min=0)
    mean = centre + offset
    y = F.batch_norm(x.permute(0, 3, 1, 2), mean, variance, gamma, beta, False, 0.0, epsilon).permute(0, 2, 3, 1)
    return y.contiguous(), mean, variance, count


def _statistics(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and biased variance of the own rows."""
    if x.is_cuda:
        variance, mean = torch.var_mean(x, _ROWS, correction=0)
        return mean, variance
    # On the CPU the native normalisation's own pass is many times faster than `var_mean`.
    scratch = torch.zeros(2, x.shape[-1])
    return torch.ops.aten.batch_norm_update_stats(x.permute(0, 3, 1, 2), *scratch, 1.0)


def _forward_fake(x: torch.Tensor, gamma: torch.Tensor, beta: torch.Tensor, centre: torch.Tensor, epsilon: float,
                  group: str) -> tuple[torch.Tensor, ...]:
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    return y, centre.new_empty(centre.shape), centre.new_empty(centre.shape), x.new_empty((1,))


def _gradient(slopes: torch.Tensor, x: torch.Tensor, gamma: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor,
              count: torch.Tensor, epsilon: float, group: str) -> tuple[torch.Tensor, ...]:
    scale = torch.rsqrt(variance + epsilon)
    unit = (x - mean).mul_(scale)
    own = torch.cat([(slopes * unit).sum(_ROWS), slopes.sum(_ROWS)])
    along, along_mean = (all_reduce_sum(own, group) / count).split(len(mean))
    of_x = unit.mul_(-along).add_(slopes).sub_(along_mean).mul_(gamma * scale)
    of_gamma, of_beta = own.split(len(mean))
    return of_x, of_gamma.clone(), of_beta.clone()


def _gradient_fake(slopes: torch.Tensor, x: torch.Tensor, gamma: torch.Tensor, *_: Any) -> tuple[torch.Tensor, ...]:
    of_x = torch.empty_like(x, memory_format=torch.contiguous_format)
    return of_x, gamma.new_empty(gamma.shape), gamma.new_empty(gamma.shape)


def _keep(ctx: Any, inputs: tuple, output: tuple) -> None:
    x, gamma, _, _, ctx.epsilon, ctx.group = inputs
    ctx.save_for_backward(x, gamma, *output[1:])


def _backward(ctx: Any, slopes: torch.Tensor, *_: Any) -> tuple:
    of_x, of_gamma, of_beta = torch.ops.kmrcnn.sync_batch_norm_gradient(
        slopes.contiguous(), *ctx.saved_tensors, ctx.epsilon, ctx.group)
    return of_x, of_gamma, of_beta, None, None, None


for _device in ("CPU", "CUDA"):
    _library.impl("sync_batch_norm", _forward, _device)
    _library.impl("sync_batch_norm_gradient", _gradient, _device)
torch.library.register_fake("kmrcnn::sync_batch_norm", _forward_fake, lib=_library)
torch.library.register_fake("kmrcnn::sync_batch_norm_gradient", _gradient_fake, lib=_library)
torch.library.register_autograd("kmrcnn::sync_batch_norm", _backward, setup_context=_keep, lib=_library)
