"""The mask loss and the focal loss as torch ops with gradients of their own. Imported only under the torch backend.

On the GPU both are kernels. On the CPU they spare what differentiating the `keras.ops` forms would keep for the
backward pass: several tensors as large as the logits, or as the channels of all masks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from kmrcnn import kernels
from kmrcnn.ops.focal import focal_sums
from kmrcnn.ops.mask_loss import channel_loss

_library = torch.library.Library("kmrcnn", "FRAGMENT")
_library.define("mask_loss(Tensor logits, Tensor class_ids, Tensor target) -> Tensor")
_library.define("mask_loss_gradient(Tensor slopes, Tensor logits, Tensor class_ids, Tensor target) -> Tensor")
_library.define("focal_loss(Tensor logits, Tensor labels, float alpha, float gamma) -> Tensor")
_library.define("focal_gradient(Tensor slopes, Tensor logits, Tensor labels, float alpha, float gamma) -> Tensor")


def mask_loss(logits: torch.Tensor, class_ids: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """See `kmrcnn.ops.mask_loss`; class_ids int32, target float32."""
    return torch.ops.kmrcnn.mask_loss(logits, class_ids, target)


def focal_loss(logits: torch.Tensor, labels: torch.Tensor, alpha: float, gamma: float) -> torch.Tensor:
    """See `kmrcnn.ops.sigmoid_focal_loss`; logits (B, A, C), labels (B, A) int32 -> (B,)."""
    return torch.ops.kmrcnn.focal_loss(logits, labels, alpha, gamma)


def _mask_loss_natively(logits: torch.Tensor, class_ids: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return channel_loss(logits, class_ids, target)


def _mask_gradient_natively(slopes: torch.Tensor, logits: torch.Tensor, class_ids: torch.Tensor,
                            target: torch.Tensor) -> torch.Tensor:
    positive = (class_ids > 0) & (class_ids < logits.shape[-1])
    index = torch.where(positive, class_ids, 0).long()[:, :, None, None, None].expand(*logits.shape[:-1], 1)
    slope = (slopes / max(target.shape[2] * target.shape[3], 1))[:, :, None, None]
    own = slope * (torch.sigmoid(logits.gather(-1, index)[..., 0].float()) - target)
    own = torch.where(positive[:, :, None, None], own, 0.0).to(logits.dtype)
    return torch.zeros_like(logits, memory_format=torch.contiguous_format).scatter_(-1, index, own[..., None])


def _focal_loss_natively(logits: torch.Tensor, labels: torch.Tensor, alpha: float, gamma: float) -> torch.Tensor:
    return focal_sums(logits, labels, alpha, gamma)


def _focal_gradient_natively(slopes: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor, alpha: float,
                             gamma: float) -> torch.Tensor:
    positive = labels[..., None] == torch.arange(1, logits.shape[-1] + 1, device=labels.device)
    z = torch.where(positive, logits, -logits).float()
    slope = gamma * torch.sigmoid(z) * F.softplus(-z) + torch.sigmoid(-z)
    slope *= torch.exp(-gamma * F.softplus(z))
    slope *= torch.where(positive, -alpha, 1.0 - alpha)
    slope = torch.where((labels >= 0)[..., None], slope * slopes[:, None, None], 0.0)
    return slope.to(logits.dtype)


def _kernel_or(native: Callable, kernel: str, logits_at: int) -> Callable:
    """The implementation of an op: a function of kernels/losses.py where kernels can run, else the native form."""
    def run(*arguments: Any) -> torch.Tensor:
        if not kernels.enabled(arguments[logits_at]):
            return native(*arguments)
        from kmrcnn.kernels import losses

        return getattr(losses, kernel)(*arguments)

    return run


def _keep_mask_loss(ctx: Any, inputs: tuple, output: torch.Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _mask_loss_backward(ctx: Any, slopes: torch.Tensor) -> tuple:
    return torch.ops.kmrcnn.mask_loss_gradient(slopes, *ctx.saved_tensors), None, None


def _keep_focal_loss(ctx: Any, inputs: tuple, output: torch.Tensor) -> None:
    logits, labels, ctx.alpha, ctx.gamma = inputs
    ctx.save_for_backward(logits, labels)


def _focal_loss_backward(ctx: Any, slopes: torch.Tensor) -> tuple:
    return torch.ops.kmrcnn.focal_gradient(slopes, *ctx.saved_tensors, ctx.alpha, ctx.gamma), None, None, None


def _fake_gradient(slopes: torch.Tensor, logits: torch.Tensor, *_: Any) -> torch.Tensor:
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


def _fake_mask_loss(logits: torch.Tensor, class_ids: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return class_ids.new_empty(class_ids.shape, dtype=torch.float32)


def _fake_focal_loss(logits: torch.Tensor, labels: torch.Tensor, alpha: float, gamma: float) -> torch.Tensor:
    return labels.new_empty(labels.shape[0], dtype=torch.float32)


for _name, _native, _logits_at, _fake in (("mask_loss", _mask_loss_natively, 0, _fake_mask_loss),
                                          ("mask_loss_gradient", _mask_gradient_natively, 1, _fake_gradient),
                                          ("focal_loss", _focal_loss_natively, 0, _fake_focal_loss),
                                          ("focal_gradient", _focal_gradient_natively, 1, _fake_gradient)):
    for _device in ("CPU", "CUDA"):
        _library.impl(_name, _kernel_or(_native, _name, _logits_at), _device)
    torch.library.register_fake(f"kmrcnn::{_name}", _fake, lib=_library)
torch.library.register_autograd("kmrcnn::mask_loss", _mask_loss_backward, setup_context=_keep_mask_loss, lib=_library)
torch.library.register_autograd("kmrcnn::focal_loss", _focal_loss_backward, setup_context=_keep_focal_loss,
                                lib=_library)
