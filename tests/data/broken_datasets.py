"""Datasets that misbehave, in a module that loader worker processes can import."""

from __future__ import annotations

import os
import signal

import numpy as np

from kmrcnn.data.shapes import ShapesDataset


class SometimesBroken(ShapesDataset):
    """Every third image cannot be loaded."""

    def load_image(self, image_id):
        if image_id % 3 == 0:
            raise OSError("disk on fire")
        return super().load_image(image_id)


class AlwaysBroken(ShapesDataset):
    def load_mask(self, image_id):
        raise KeyError("no such mask")


class Deadly(ShapesDataset):
    """Loading kills the process, as a crashing decoder does."""

    def load_image(self, image_id):
        os.kill(os.getpid(), signal.SIGKILL)


class Talkative(ShapesDataset):
    """Prints while loading, which must not disturb a worker's answers."""

    def load_image(self, image_id):
        print("loading", image_id)
        return super().load_image(image_id)


class Nothing(ShapesDataset):
    """Images without instances."""

    def load_mask(self, image_id):
        return np.zeros((0, 0, 0), bool), np.zeros(0, np.int32)


class Deep(ShapesDataset):
    """16-bit images."""

    def load_image(self, image_id):
        return super().load_image(image_id).astype(np.uint16) * 100


class HalfDeep(Deep):
    """Every second image has 16 bits."""

    def load_image(self, image_id):
        image = super().load_image(image_id)
        return image if image_id % 2 else (image // 100).astype(np.uint8)
