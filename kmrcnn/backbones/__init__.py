"""Networks that turn an image into a pyramid of features."""

from kmrcnn.backbones.resnet import resnet

__all__ = ["resnet"]
