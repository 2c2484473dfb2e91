"""Networks that turn an image into a pyramid of features."""

from kmrcnn.backbones.resnet import bottleneck, resnet

__all__ = ["bottleneck", "resnet"]
