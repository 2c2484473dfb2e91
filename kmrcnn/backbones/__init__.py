"""Networks that turn an image into a pyramid of features."""

from kmrcnn.backbones.resnet import ARCHITECTURES, Architecture, block_letter, bottleneck, resnet, resnet_stage

__all__ = ["ARCHITECTURES", "Architecture", "block_letter", "bottleneck", "resnet", "resnet_stage"]
