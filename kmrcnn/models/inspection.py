"""Tensors of the graph by name, also those that Matterport's notebooks look for inside its ProposalLayer."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import keras

from kmrcnn.layers import InternalToNormalized, ProposalSteps


class NamedTensors:
    """Finds tensors of a training or inference graph.

    A name is that of an output of the model, of a layer or of a step of the proposals (see `proposal_steps`).
    TensorFlow's spellings are understood: "ROI/refined_anchors:0", "res2a_out/Relu:0".

    Args:
        model: from `kmrcnn.models.mask_rcnn`.
    """

    def __init__(self, model: keras.Model):
        self.model = model

    @cached_property
    def proposal_steps(self) -> dict[str, Any]:
        """Steps of the layer "ROI", best score first, K = PRE_NMS_LIMIT.

        pre_nms_anchors, refined_anchors, refined_anchors_clipped: (B, K, 4) normalised; post_nms_anchor_ix, also
        rpn_non_max_suppression: int32, the rows of K that NMS keeps of the first image, padded with -1; proposals:
        (B, N, 4), the layer's output.
        """
        layer, frames = self.model.get_layer("ROI"), self.model.get_layer("ROI_normalized")
        probs, deltas, *anchors, border = layer.input
        layer = ProposalSteps.from_config({**layer.get_config(), "name": "ROI_steps"})
        *boxes, kept = layer(probs, deltas, anchors, border)
        names = ("pre_nms_anchors", "refined_anchors", "refined_anchors_clipped")
        steps = {name: InternalToNormalized(frames.box_offset, name=name)(tensor, self.model.input["input_image"])
                 for name, tensor in zip(names, boxes, strict=True)}
        first = kept[0]
        return {**steps, "post_nms_anchor_ix": first, "rpn_non_max_suppression": first,
                "proposals": self.model.output["ROI"]}

    def find(self, name: str) -> Any:
        """The tensor (or list of tensors) of a name, None if there is none."""
        name = name.strip("/").split(":")[0]
        parts = name.split("/")
        if parts[0] == "ROI" and len(parts) > 1:
            return self.proposal_steps.get(parts[1])
        if parts[0] in self.model.output:
            return self.model.output[parts[0]]
        layer = next((layer for layer in self.model.layers if layer.name == parts[0]), None)
        return self.proposal_steps.get(parts[0]) if layer is None else layer.output

    def collect(self, items: Sequence) -> OrderedDict[str, Any]:
        """Tensors by name.

        Args:
            items: names, or pairs (name, tensor). The output of a layer that has the name of a model output stands for
                that output: "ROI" gives normalised boxes, "mrcnn_mask" probabilities.

        Returns:
            In order; a layer with several outputs gives "name:0", "name:1", …

        Raises:
            ValueError: there is no tensor of a name.
        """
        tensors = OrderedDict()
        for item in items:
            name, tensor = (item, None) if isinstance(item, str) else item
            tensor = self.find(name) if tensor is None else self._outer.get(id(tensor), tensor)
            if tensor is None:
                raise ValueError(f"no output, layer or step of the proposals is called {name!r}")
            parts = tensor if isinstance(tensor, list | tuple) else [tensor]
            several = len(parts) > 1
            tensors.update((f"{name}:{index}" if several else name, part) for index, part in enumerate(parts))
        return tensors

    @cached_property
    def _outer(self) -> dict[int, Any]:
        """Model output by the id of the output of the layer of its name."""
        layers = {layer.name: layer for layer in self.model.layers}
        return {id(layers[name].output): tensor for name, tensor in self.model.output.items() if name in layers}
