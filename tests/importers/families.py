"""The published networks as lists of layers, and what each system calls them. Plain loops, nothing of the package.

A layer is (its name here, kind, sizes); `weights` turns it into the shapes of its arrays in files and here, a family's
function into its name in that family's files.
"""

from __future__ import annotations

import re

import numpy as np

# (layer, kind, sizes): conv (out, in per group, side), deconv (in, out, side), first_fc (out, channels, side),
# fc and dense (out, in), norm (channels,)
Layer = tuple[str, str, tuple[int, ...]]


def letters(block: int) -> str:
    return chr(97 + block) if block < 26 else "a" + chr(97 + block - 26)


def backbone(blocks=(3, 4, 6, 3), groups: int = 1, width: int = 64, stages=(2, 3, 4, 5)) -> list[Layer]:
    layers: list[Layer] = []
    if 2 in stages:
        layers += [("conv1", "conv", (64, 3, 7)), ("bn_conv1", "norm", (64,))]
    for stage in stages:
        middle, outside = groups * width * 2 ** (stage - 2), 256 * 2 ** (stage - 2)
        for block in range(blocks[stage - 2]):
            before = (64 if stage == 2 else outside // 2) if block == 0 else outside
            name = f"{stage}{letters(block)}_branch"
            convs = [("2a", middle, before, 1), ("2b", middle, middle // groups, 3), ("2c", outside, middle, 1)]
            convs += [("1", outside, before, 1)] if block == 0 else []
            for branch, out, inside, side in convs:
                layers += [(f"res{name}{branch}", "conv", (out, inside, side)),
                           (f"bn{name}{branch}", "norm", (out,))]
    return layers


def pyramid(norm: bool = False) -> list[Layer]:
    layers: list[Layer] = []
    for level in (2, 3, 4, 5):
        layers += [(f"fpn_c{level}p{level}", "conv", (256, 64 * 2**level, 1)), (f"fpn_p{level}", "conv", (256, 256, 3))]
        if norm:
            layers += [(f"fpn_c{level}p{level}_norm", "norm", (256,)), (f"fpn_p{level}_norm", "norm", (256,))]
    return layers


def rpn(channels: int = 256, anchors: int = 3, convs: int = 1, scores: int = 1, size: int | None = None) -> list[Layer]:
    size = size or channels
    shared = [("rpn_conv_shared" + (str(i) if i > 1 else ""), "conv", (size, channels, 3)) for i in range(1, convs + 1)]
    return [*shared, ("rpn_class_raw", "conv", (scores * anchors, size, 1)),
            ("rpn_bbox_pred", "conv", (4 * anchors, size, 1))]


def box_head(convs: int = 0, norm: bool = False, fcs: int = 2, fc_norm: bool = False) -> list[Layer]:
    layers: list[Layer] = []
    for index in range(1, convs + 1):
        layers += [(f"mrcnn_class_xconv{index}", "conv", (256, 256, 3))]
        layers += [(f"mrcnn_class_xbn{index}", "norm", (256,))] if norm else []
    layers += [("mrcnn_class_conv1", "first_fc", (1024, 256, 7))]
    layers += [("mrcnn_class_conv2", "fc", (1024, 1024))] if fcs == 2 else []
    return layers + [(f"mrcnn_class_bn{i}", "norm", (1024,)) for i in range(1, fcs + 1) if fc_norm]


def predictors(features: int = 1024, classes: int = 81, boxes: int | None = None) -> list[Layer]:
    return [("mrcnn_class_logits", "dense", (classes, features)),
            ("mrcnn_bbox_fc", "dense", (4 * (boxes or classes), features))]


def mask_head(convs: int = 4, norm: bool = False, features: int = 256, classes: int = 81) -> list[Layer]:
    layers: list[Layer] = [(f"mrcnn_mask_conv{i}", "conv", (256, 256, 3)) for i in range(1, convs + 1)]
    layers += [(f"mrcnn_mask_bn{i}", "norm", (256,)) for i in range(1, convs + 1) if norm]
    return [*layers, ("mrcnn_mask_deconv", "deconv", (features, 256, 2)), ("mrcnn_mask", "conv", (classes, 256, 1))]


def weights(layer: Layer, bias: bool, statistics: bool) -> list[tuple[str, tuple[int, ...], tuple[int, ...]]]:
    """(weight, shape in files, shape here) of a layer."""
    _, kind, sizes = layer
    if kind == "norm":
        names = ("gamma", "beta", "moving_mean", "moving_variance")[:4 if statistics else 2]
        return [(name, sizes, sizes) for name in names]
    out, inside, side = (*sizes, 1)[:3]
    shapes = {"conv": ((out, inside, side, side), (side, side, inside, out)),
              "deconv": ((out, inside, side, side), (side, side, inside, out)),
              "first_fc": ((out, inside * side * side), (side, side, inside, out)),
              "fc": ((out, inside), (1, 1, inside, out)), "dense": ((out, inside), (inside, out))}[kind]
    found = [("kernel", *shapes)]
    return [*found, ("bias", *[(inside if kind == "deconv" else out,)] * 2)] if bias else found


def has_bias(name: str, names: set[str]) -> bool:
    """Convolutions that a normalisation follows have none."""
    followers = {f"{name}_norm", re.sub("^res", "bn", name), name.replace("class_xconv", "class_xbn"),
                 name.replace("class_conv", "class_bn"), name.replace("mask_conv", "mask_bn")} - {name}
    return name != "conv1" and not followers & names


TORCH = {"kernel": "weight", "bias": "bias", "gamma": "weight", "beta": "bias", "moving_mean": "running_mean",
         "moving_variance": "running_var"}
CAFFE2 = {"kernel": "w", "bias": "b", "gamma": "s", "beta": "b"}


def table(layers: list[Layer], name_of, *, endings=TORCH, joint=".", statistics=True, all_biases=False) -> list[tuple]:
    """(array's name in the file, its shape there, (layer, weight), its shape here) of a network."""
    names = {layer[0] for layer in layers}
    return [(f"{name_of(layer[0])}{joint}{endings[weight]}", theirs, (layer[0], weight), ours)
            for layer in layers
            for weight, theirs, ours in weights(layer, all_biases or has_bias(layer[0], names), statistics)]


def numbered(rows: list[tuple]) -> dict[str, np.ndarray]:
    """Arrays of those names and shapes; the n-th is full of n + 1, in no memory."""
    return {row[0]: np.broadcast_to(np.float32(n + 1), row[1]) for n, row in enumerate(rows)}


# ---- what the systems call a layer ----


def _branch(layer: str) -> tuple[str, int, int, str] | None:
    found = re.fullmatch(r"(res|bn)(\d)([a-z]+)_branch(1|2[abc])", layer)
    if not found:
        return None
    kind, stage, name, branch = found.groups()
    return kind, int(stage), next(i for i in range(60) if letters(i) == name), branch


def _level(layer: str) -> tuple[str, int, bool]:
    kind, level, norm = re.fullmatch(r"fpn_(c\dp|p)(\d)(_norm)?", layer).groups()
    return ("inner" if kind != "p" else "outer"), int(level), bool(norm)


def _torch_block(layer: str, stem: str, stage_name: str) -> str | None:
    if layer in ("conv1", "bn_conv1"):
        return stem + {"conv1": "conv1", "bn_conv1": "bn1"}[layer]
    if not (hit := _branch(layer)):
        return None
    kind, stage, block, branch = hit
    part = (f"downsample.{int(kind == 'bn')}" if branch == "1" else
            {"res": "conv", "bn": "bn"}[kind] + str("abc".index(branch[1]) + 1))
    return f"{stage_name.format(stage=stage, layer=stage - 1)}.{block}.{part}"


def _fixed(layer: str, names: dict[str, str]) -> str:
    """The name of a layer, numbers at its end put in where "#" stands."""
    base, number = re.fullmatch(r"(.*?)(\d*)", layer).groups()
    return names[layer] if layer in names else names[base + "#"].replace("#", number)


def torchvision(version: int, old: bool = False):
    def name_of(layer: str) -> str:
        if block := _torch_block(layer, "backbone.body.", "backbone.body.layer{layer}"):
            return block
        if layer.startswith("fpn"):
            kind, level, norm = _level(layer)
            name = f"backbone.fpn.{'inner' if kind == 'inner' else 'layer'}_blocks.{level - 2}"
            return name if old else f"{name}.{int(norm)}"
        if found := re.fullmatch(r"mrcnn_(class_x|mask_)(conv|bn)(\d)", layer):
            head, kind, index = found.groups()
            if old:
                return f"roi_heads.mask_head.mask_fcn{index}"
            return f"roi_heads.{'box' if head[0] == 'c' else 'mask'}_head.{int(index) - 1}.{int(kind == 'bn')}"
        return _fixed(layer, {
            "rpn_conv_shared": "rpn.head.conv" if old else "rpn.head.conv.0.0", "rpn_conv_shared2": "rpn.head.conv.1.0",
            "rpn_class_raw": "rpn.head.cls_logits", "rpn_bbox_pred": "rpn.head.bbox_pred",
            "mrcnn_class_conv1": "roi_heads.box_head." + ("fc6" if version == 1 else "5"),
            "mrcnn_class_conv2": "roi_heads.box_head.fc7",
            "mrcnn_class_logits": "roi_heads.box_predictor.cls_score",
            "mrcnn_bbox_fc": "roi_heads.box_predictor.bbox_pred",
            "mrcnn_mask_deconv": "roi_heads.mask_predictor.conv5_mask",
            "mrcnn_mask": "roi_heads.mask_predictor.mask_fcn_logits"})
    return name_of


def classifier(layer: str) -> str:
    return _torch_block(layer, "", "layer{layer}")


def pytorch_mask_rcnn(layer: str) -> str:
    if layer in ("conv1", "bn_conv1"):
        return "fpn.C1.0" if layer == "conv1" else "fpn.C1.1"
    if layer.startswith("fpn"):
        kind, level, _ = _level(layer)
        return f"fpn.P{level}_conv" + ("1" if kind == "inner" else "2.1")
    return _torch_block(layer, "", "fpn.C{stage}") or _fixed(layer, {
        "rpn_conv_shared": "rpn.conv_shared", "rpn_class_raw": "rpn.conv_class", "rpn_bbox_pred": "rpn.conv_bbox",
        "mrcnn_class_conv#": "classifier.conv#", "mrcnn_class_bn#": "classifier.bn#",
        "mrcnn_class_logits": "classifier.linear_class", "mrcnn_bbox_fc": "classifier.linear_bbox",
        "mrcnn_mask_conv#": "mask.conv#", "mrcnn_mask_bn#": "mask.bn#", "mrcnn_mask_deconv": "mask.deconv",
        "mrcnn_mask": "mask.conv5"})


def detectron(norm: str = "bn", last=(2, 3, 5, 2), fpn: bool = True):
    def name_of(layer: str) -> str:
        if layer == "bn_conv1":
            return "res_conv1_bn" if norm == "bn" else "conv1_gn"
        if hit := _branch(layer):
            kind, stage, block, branch = hit
            return f"res{stage}_{block}_branch{branch}" + (f"_{norm}" if kind == "bn" else "")
        if layer.startswith("fpn"):
            kind, level, is_norm = _level(layer)
            name = f"fpn_{'inner_' if kind == 'inner' else ''}res{level}_{last[level - 2]}_sum"
            lateral = "_lateral" if kind == "inner" and level < 5 else ""
            return name + lateral + ("_gn" if is_norm else "")
        suffix = "_fpn2" if fpn else ""
        return _fixed(layer, {
            "conv1": "conv1", "rpn_conv_shared": f"conv_rpn{suffix}", "rpn_class_raw": f"rpn_cls_logits{suffix}",
            "rpn_bbox_pred": f"rpn_bbox_pred{suffix}", "mrcnn_class_xconv#": "head_conv#",
            "mrcnn_class_xbn#": "head_conv#_gn", "mrcnn_class_conv1": "fc6", "mrcnn_class_conv2": "fc7",
            "mrcnn_class_logits": "cls_score", "mrcnn_bbox_fc": "bbox_pred", "mrcnn_mask_conv#": "_[mask]_fcn#",
            "mrcnn_mask_bn#": "_[mask]_fcn#_gn", "mrcnn_mask_deconv": "conv5_mask", "mrcnn_mask": "mask_fcn_logits"})
    return name_of


def detectron_pytorch(norm: str = "bn", fpn: bool = True, convs: bool = False):
    step = 3 if norm == "gn" else 2
    body = "Conv_Body.conv_body." if fpn else "Conv_Body."

    def name_of(layer: str) -> str:
        if layer in ("conv1", "bn_conv1"):
            return f"{body}res1." + ("conv1" if layer == "conv1" else f"{norm}1")
        if block := _torch_block(layer, "", "res{stage}"):
            prefix = "Box_Head." if not fpn and block.startswith("res5") else body
            return prefix + block.replace(".bn", f".{norm}")
        if layer.startswith("fpn"):
            kind, level, is_norm = _level(layer)
            place = {"outer": f"posthoc_modules.{5 - level}", "inner": "conv_top" if level == 5 else
                     f"topdown_lateral_modules.{4 - level}.conv_lateral"}[kind]
            return f"Conv_Body.{place}" + (f".{int(is_norm)}" if norm == "gn" else "")
        if found := re.fullmatch(r"mrcnn_(class_x|mask_)(conv|bn)(\d)", layer):
            head, kind, index = found.groups()
            place = step * (int(index) - 1) + (kind == "bn")
            return ("Box_Head.convs." if head[0] == "c" else "Mask_Head.conv_fcn.") + str(place)
        rpn_names = "RPN.FPN_RPN_" if fpn else "RPN.RPN_"
        return _fixed(layer, {
            "rpn_conv_shared": f"{rpn_names}conv", "rpn_class_raw": f"{rpn_names}cls_score",
            "rpn_bbox_pred": f"{rpn_names}bbox_pred", "mrcnn_class_conv1": "Box_Head.fc" if convs else "Box_Head.fc1",
            "mrcnn_class_conv2": "Box_Head.fc2", "mrcnn_class_logits": "Box_Outs.cls_score",
            "mrcnn_bbox_fc": "Box_Outs.bbox_pred",
            "mrcnn_mask_deconv": "Mask_Head.upconv" if fpn else "Mask_Head.upconv5",
            "mrcnn_mask": "Mask_Outs.classify"})
    return name_of


def maskrcnn_benchmark(norm: bool = False, fpn: bool = True, fc_norm: bool = False):
    box, mask = "roi_heads.box.feature_extractor.", "roi_heads.mask.feature_extractor."

    def name_of(layer: str) -> str:
        if block := _torch_block(layer, "backbone.body.stem.", "layer{layer}"):
            if block.startswith("backbone"):
                return block
            return (f"{box}head." if not fpn and block.startswith("layer4") else "backbone.body.") + block
        if layer.startswith("fpn"):
            kind, level, is_norm = _level(layer)
            name = f"backbone.fpn.fpn_{'inner' if kind == 'inner' else 'layer'}{level - 1}"
            return f"{name}.{int(is_norm)}" if norm else name
        if found := re.fullmatch(r"mrcnn_class_x(conv|bn)(\d)", layer):
            step = 3 if norm else 2
            return f"{box}xconvs.{step * (int(found[2]) - 1) + (found[1] == 'bn')}"
        inner = (".0", ".1") if norm else ("", "")
        fc = (".0", ".1") if fc_norm else ("", "")
        return _fixed(layer, {
            "rpn_conv_shared": "rpn.head.conv", "rpn_class_raw": "rpn.head.cls_logits",
            "rpn_bbox_pred": "rpn.head.bbox_pred", "mrcnn_class_conv1": f"{box}fc6{fc[0]}",
            "mrcnn_class_bn1": f"{box}fc6{fc[1]}", "mrcnn_class_conv2": f"{box}fc7{fc[0]}",
            "mrcnn_class_bn2": f"{box}fc7{fc[1]}", "mrcnn_class_logits": "roi_heads.box.predictor.cls_score",
            "mrcnn_bbox_fc": "roi_heads.box.predictor.bbox_pred", "mrcnn_mask_conv#": f"{mask}mask_fcn#{inner[0]}",
            "mrcnn_mask_bn#": f"{mask}mask_fcn#{inner[1]}", "mrcnn_mask_deconv": "roi_heads.mask.predictor.conv5_mask",
            "mrcnn_mask": "roi_heads.mask.predictor.mask_fcn_logits"})
    return name_of


def detectron2(prefix: str = "backbone.bottom_up.", fpn: bool = True, rpn_convs: int = 1):
    def name_of(layer: str) -> str:
        if layer in ("conv1", "bn_conv1"):
            return f"{prefix}stem.conv1" + (".norm" if layer != "conv1" else "")
        if hit := _branch(layer):
            kind, stage, block, branch = hit
            part = "shortcut" if branch == "1" else f"conv{'abc'.index(branch[1]) + 1}"
            start = "roi_heads." if not fpn and stage == 5 else prefix
            return f"{start}res{stage}.{block}.{part}" + (".norm" if kind == "bn" else "")
        if layer.startswith("fpn"):
            kind, level, is_norm = _level(layer)
            return f"backbone.fpn_{'lateral' if kind == 'inner' else 'output'}{level}" + (".norm" if is_norm else "")
        head = "proposal_generator.rpn_head."
        return _fixed(layer, {
            "rpn_conv_shared": f"{head}conv" + (".conv0" if rpn_convs > 1 else ""),
            "rpn_conv_shared2": f"{head}conv.conv1", "rpn_class_raw": f"{head}objectness_logits",
            "rpn_bbox_pred": f"{head}anchor_deltas", "mrcnn_class_xconv#": "roi_heads.box_head.conv#",
            "mrcnn_class_xbn#": "roi_heads.box_head.conv#.norm", "mrcnn_class_conv1": "roi_heads.box_head.fc1",
            "mrcnn_class_conv2": "roi_heads.box_head.fc2", "mrcnn_class_logits": "roi_heads.box_predictor.cls_score",
            "mrcnn_bbox_fc": "roi_heads.box_predictor.bbox_pred", "mrcnn_mask_conv#": "roi_heads.mask_head.mask_fcn#",
            "mrcnn_mask_bn#": "roi_heads.mask_head.mask_fcn#.norm", "mrcnn_mask_deconv": "roi_heads.mask_head.deconv",
            "mrcnn_mask": "roi_heads.mask_head.predictor"})
    return name_of


def liangheming(layer: str) -> str:
    if layer.startswith("fpn"):
        kind, level, _ = _level(layer)
        return f"fpn.{'latent' if kind == 'inner' else 'out'}_layers.{level - 2}"
    if found := re.fullmatch(r"mrcnn_mask_conv(\d)", layer):
        return f"roi_head.mask_head.conv_list.{2 * int(found[1]) - 2}"
    return _torch_block(layer, "backbone.", "backbone.layer{layer}") or {
        "rpn_conv_shared": "rpn.rpn_head.conv", "rpn_class_raw": "rpn.rpn_head.cls",
        "rpn_bbox_pred": "rpn.rpn_head.box", "mrcnn_class_conv1": "roi_head.box_head.fc6",
        "mrcnn_class_conv2": "roi_head.box_head.fc7", "mrcnn_class_logits": "roi_head.box_head.cls",
        "mrcnn_bbox_fc": "roi_head.box_head.bbox",
        "mrcnn_mask_deconv": "roi_head.mask_head.conv_list.8", "mrcnn_mask": "roi_head.mask_head.conv_list.10"}[layer]
