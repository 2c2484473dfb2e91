"""Normalisation layers: frozen or trained batch norm, and group norm, with one numerics on every backend."""

from __future__ import annotations

from collections.abc import Callable

import keras
from keras import ops

from kmrcnn.ops.replica_moments import replica_moments

_ON_TORCH = keras.backend.backend() == "torch"
if _ON_TORCH:
    from kmrcnn.layers import torch_native


@keras.saving.register_keras_serializable("kmrcnn")
class BatchNorm(keras.layers.BatchNormalization):
    """Batch normalisation over NHWC whose use of batch statistics is fixed when it is built.

    The moving variance is Keras' (biased) on every backend.

    Args:
        train_bn: False always normalises with the moving statistics, whatever `training` says (gamma and beta
            stay trainable, as in Matterport); None follows `training`; True always uses the batch's statistics.
        sync: the batch's statistics are those of all replicas together.
        Everything else as `keras.layers.BatchNormalization`.

    Attributes:
        group: on torch, name of the group of processes that share a batch; set by the step that trains on one.
    """

    def __init__(self, train_bn: bool | None = False, sync: bool = False, **kwargs):
        super().__init__(**kwargs)
        self.train_bn, self.sync, self.group = train_bn, sync, None

    def call(self, inputs, training=None, mask=None):
        training = training if self.train_bn is None else self.train_bn
        if not _ON_TORCH:
            return super().call(inputs, training=training, mask=mask)
        dtype = inputs.dtype
        gamma, beta = ops.convert_to_tensor(self.gamma), ops.convert_to_tensor(self.beta)
        x = ops.cast(inputs, self.variable_dtype)
        if training and self.trainable:
            y, mean, variance = self._by_batch(x, gamma, beta)
            self._update_moving_statistics(mean, variance)
        else:
            mean, variance = ops.convert_to_tensor(self.moving_mean), ops.convert_to_tensor(self.moving_variance)
            y = torch_native.batch_norm_inference(x, gamma, beta, mean, variance, self.epsilon)
        return y.to(dtype)

    def _by_batch(self, x, gamma, beta) -> tuple:
        if not (self.sync and self.group):
            return torch_native.batch_norm_training(x, gamma, beta, self.epsilon)
        from kmrcnn.ops.torch_sync_norm import sync_batch_norm

        centre = ops.convert_to_tensor(self.moving_mean).detach()
        return sync_batch_norm(x, gamma, beta, centre, self.epsilon, self.group)

    def _moments(self, inputs, mask):
        """Keras' own code asks for them on TensorFlow and JAX."""
        if self.sync and not _ON_TORCH:
            return replica_moments(inputs, self._reduction_axes)
        return super()._moments(inputs, mask)

    def _update_moving_statistics(self, mean, variance) -> None:
        for moving, value in ((self.moving_mean, mean), (self.moving_variance, variance)):
            moving.assign(moving.value.detach() * self.momentum + value * (1.0 - self.momentum))

    def get_config(self) -> dict:
        return {**super().get_config(), "train_bn": self.train_bn, "sync": self.sync}


@keras.saving.register_keras_serializable("kmrcnn")
class FrozenBatchNorm(BatchNorm):
    """Batch normalisation that never changes: gamma and beta are weights, but not trainable ones.

    Args:
        epsilon: of the system the statistics come from; 0 where they are folded into gamma and beta.
    """

    def __init__(self, **kwargs):
        kwargs["train_bn"] = False
        super().__init__(**kwargs)

    def add_weight(self, *args, **kwargs):
        return super().add_weight(*args, **{**kwargs, "trainable": False})


@keras.saving.register_keras_serializable("kmrcnn")
class GroupNorm(keras.layers.GroupNormalization):
    """Group normalisation over NHWC (Wu & He 2018), independent of the batch size."""

    def call(self, inputs):
        if not _ON_TORCH:
            return super().call(inputs)
        gamma, beta = ops.convert_to_tensor(self.gamma), ops.convert_to_tensor(self.beta)
        return torch_native.group_norm(inputs, self.groups, gamma.to(inputs.dtype), beta.to(inputs.dtype), self.epsilon)


def synchronize(model: keras.Model) -> None:
    """Let the trained batch normalisations of a model, those of its own layers included, share their statistics."""
    for layer in model._flatten_layers():
        if isinstance(layer, BatchNorm) and not isinstance(layer, FrozenBatchNorm):
            layer.sync = True


class Normalization:
    """Makes the normalisation layers of one network, so that its parts need only a name.

    Args:
        kind: "bn", "frozen_bn", "gn", or None for no normalisation.
        train_bn, momentum: for "bn", see `BatchNorm`.
        epsilon: for "bn" and "frozen_bn".
        groups: for "gn".

    Raises:
        ValueError: for an unknown kind.
    """

    def __init__(self, kind: str | None = "bn", train_bn: bool | None = False, momentum: float = 0.99,
                 epsilon: float = 1e-3, groups: int = 32):
        if kind not in (None, "frozen_bn", "bn", "gn"):
            raise ValueError(f"normalisation kind must be None, 'frozen_bn', 'bn' or 'gn', got {kind!r}")
        self.kind, self.train_bn, self.momentum, self.epsilon, self.groups = kind, train_bn, momentum, epsilon, groups

    def __call__(self, name: str) -> Callable:
        """A new layer called `name`; the identity, which is no layer, for kind None."""
        if self.kind is None:
            return _identity
        if self.kind == "gn":
            # 1e-5 is the value of Wu & He and of every published GN detector.
            return GroupNorm(groups=self.groups, epsilon=1e-5, name=name)
        if self.kind == "frozen_bn":
            return FrozenBatchNorm(epsilon=self.epsilon, name=name)
        return BatchNorm(train_bn=self.train_bn, momentum=self.momentum, epsilon=self.epsilon, name=name)

    def needs_bias(self, use_bias: bool) -> bool:
        """Whether a convolution before such a layer has a bias: always where nothing follows."""
        return use_bias or self.kind is None


def _identity(x):
    return x
