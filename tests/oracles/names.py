"""What each system calls the parts of its network in its weight files. Written from the systems' own definitions.

A name is a format with these fields: stage 2..5 (res2..res5), layer = stage - 1, fine = stage - 2 (0 is the finest
level), coarse = 5 - stage, lateral = 4 - stage, block 0.., letter (of the block: a..), last (the stage's last block),
conv 1..3 with branch 2a..2c, and i = 0.. with n = i + 1 for stacked convolutions of heads.
"""

from __future__ import annotations

DETECTRON = {
    "stem": "conv1", "stem_norm": "res_conv1_bn",
    "conv": "res{stage}_{block}_branch{branch}", "norm": "res{stage}_{block}_branch{branch}_bn",
    "shortcut": "res{stage}_{block}_branch1", "shortcut_norm": "res{stage}_{block}_branch1_bn",
    "top": "fpn_inner_res5_{last}_sum", "lateral": "fpn_inner_res{stage}_{last}_sum_lateral",
    "output": "fpn_res{stage}_{last}_sum",
    "rpn_conv": "conv_rpn_fpn2", "rpn_scores": "rpn_cls_logits_fpn2", "rpn_deltas": "rpn_bbox_pred_fpn2",
    "fc": ("fc6", "fc7"), "logits": "cls_score", "deltas": "bbox_pred",
    "mask_conv": "_[mask]_fcn{n}", "deconv": "conv5_mask", "masks": "mask_fcn_logits",
}
DETECTRON_C4 = DETECTRON | {
    "rpn_conv": "conv_rpn", "rpn_scores": "rpn_cls_logits", "rpn_deltas": "rpn_bbox_pred",
}
DETECTRON_GN = DETECTRON | {
    "stem_norm": "conv1_gn", "norm": "res{stage}_{block}_branch{branch}_gn",
    "shortcut_norm": "res{stage}_{block}_branch1_gn",
}
DETECTRON_PYTORCH = {
    "stem": "Conv_Body.conv_body.res1.conv1", "stem_norm": "Conv_Body.conv_body.res1.bn1",
    "conv": "Conv_Body.conv_body.res{stage}.{block}.conv{conv}",
    "norm": "Conv_Body.conv_body.res{stage}.{block}.bn{conv}",
    "shortcut": "Conv_Body.conv_body.res{stage}.{block}.downsample.0",
    "shortcut_norm": "Conv_Body.conv_body.res{stage}.{block}.downsample.1",
    "top": "Conv_Body.conv_top", "lateral": "Conv_Body.topdown_lateral_modules.{lateral}.conv_lateral",
    "output": "Conv_Body.posthoc_modules.{coarse}",
    "rpn_conv": "RPN.FPN_RPN_conv", "rpn_scores": "RPN.FPN_RPN_cls_score", "rpn_deltas": "RPN.FPN_RPN_bbox_pred",
    "fc": ("Box_Head.fc1", "Box_Head.fc2"), "logits": "Box_Outs.cls_score", "deltas": "Box_Outs.bbox_pred",
    "mask_conv": "Mask_Head.conv_fcn.{2i}", "deconv": "Mask_Head.upconv", "masks": "Mask_Outs.classify",
}
_TORCH_RESNET = {
    "stem": "conv1", "stem_norm": "bn1",
    "conv": "layer{layer}.{block}.conv{conv}", "norm": "layer{layer}.{block}.bn{conv}",
    "shortcut": "layer{layer}.{block}.downsample.0", "shortcut_norm": "layer{layer}.{block}.downsample.1",
}


def _under(prefix: str, names: dict) -> dict:
    return {part: prefix + name for part, name in names.items()}


BENCHMARK = _under("backbone.body.", _TORCH_RESNET) | {
    "stem": "backbone.body.stem.conv1", "stem_norm": "backbone.body.stem.bn1",
    "top": "backbone.fpn.fpn_inner4", "lateral": "backbone.fpn.fpn_inner{layer}",
    "output": "backbone.fpn.fpn_layer{layer}",
    "rpn_conv": "rpn.head.conv", "rpn_scores": "rpn.head.cls_logits", "rpn_deltas": "rpn.head.bbox_pred",
    "fc": ("roi_heads.box.feature_extractor.fc6", "roi_heads.box.feature_extractor.fc7"),
    "logits": "roi_heads.box.predictor.cls_score", "deltas": "roi_heads.box.predictor.bbox_pred",
    "mask_conv": "roi_heads.mask.feature_extractor.mask_fcn{n}",
    "deconv": "roi_heads.mask.predictor.conv5_mask", "masks": "roi_heads.mask.predictor.mask_fcn_logits",
}
BENCHMARK_C4 = BENCHMARK | {"res5": _under("roi_heads.box.feature_extractor.head.", _TORCH_RESNET)}
# Sequential(conv, GroupNorm) for each level and convolution of the mask head; Sequential(conv, GN, ReLU, ...) in the
# box head.
BENCHMARK_GN = BENCHMARK | {
    "top": "backbone.fpn.fpn_inner4.0", "lateral": "backbone.fpn.fpn_inner{layer}.0",
    "output": "backbone.fpn.fpn_layer{layer}.0",
    "lateral_norm": "backbone.fpn.fpn_inner{layer}.1", "output_norm": "backbone.fpn.fpn_layer{layer}.1",
    "box_conv": "roi_heads.box.feature_extractor.xconvs.{3i}",
    "box_norm": "roi_heads.box.feature_extractor.xconvs.{3i+1}",
    "fc": ("roi_heads.box.feature_extractor.fc6.0", "roi_heads.box.feature_extractor.fc7.0"),
    "fc_norm": ("roi_heads.box.feature_extractor.fc6.1", "roi_heads.box.feature_extractor.fc7.1"),
    "mask_conv": "roi_heads.mask.feature_extractor.mask_fcn{n}.0",
    "mask_norm": "roi_heads.mask.feature_extractor.mask_fcn{n}.1",
}
BENCHMARK_XCONV = BENCHMARK_GN | {"fc": ("roi_heads.box.feature_extractor.fc6",)}
_DETECTRON2_STAGES = {
    "stem": "stem.conv1", "stem_norm": "stem.conv1.norm",
    "conv": "res{stage}.{block}.conv{conv}", "norm": "res{stage}.{block}.conv{conv}.norm",
    "shortcut": "res{stage}.{block}.shortcut", "shortcut_norm": "res{stage}.{block}.shortcut.norm",
}
_DETECTRON2_HEADS = {
    "rpn_conv": "proposal_generator.rpn_head.conv", "rpn_scores": "proposal_generator.rpn_head.objectness_logits",
    "rpn_deltas": "proposal_generator.rpn_head.anchor_deltas",
    "logits": "roi_heads.box_predictor.cls_score", "deltas": "roi_heads.box_predictor.bbox_pred",
    "mask_conv": "roi_heads.mask_head.mask_fcn{n}", "deconv": "roi_heads.mask_head.deconv",
    "masks": "roi_heads.mask_head.predictor",
}
DETECTRON2 = _under("backbone.bottom_up.", _DETECTRON2_STAGES) | _DETECTRON2_HEADS | {
    "top": "backbone.fpn_lateral5", "lateral": "backbone.fpn_lateral{stage}", "output": "backbone.fpn_output{stage}",
    "fc": ("roi_heads.box_head.fc1", "roi_heads.box_head.fc2"),
}
DETECTRON2_C4 = _under("backbone.", _DETECTRON2_STAGES) | _DETECTRON2_HEADS | {
    "res5": _under("roi_heads.", _DETECTRON2_STAGES),
}
LIANGHEMING = _under("backbone.", _TORCH_RESNET) | {
    "top": "fpn.latent_layers.3", "lateral": "fpn.latent_layers.{fine}", "output": "fpn.out_layers.{fine}",
    "rpn_conv": "rpn.rpn_head.conv", "rpn_scores": "rpn.rpn_head.cls", "rpn_deltas": "rpn.rpn_head.box",
    "fc": ("roi_head.box_head.fc6", "roi_head.box_head.fc7"),
    "logits": "roi_head.box_head.cls", "deltas": "roi_head.box_head.bbox",
    "mask_conv": "roi_head.mask_head.conv_list.{2i}", "deconv": "roi_head.mask_head.conv_list.8",
    "masks": "roi_head.mask_head.conv_list.10",
}
MATTERPORT = {
    "stem": "conv1", "stem_norm": "bn_conv1",
    "conv": "res{stage}{letter}_branch{branch}", "norm": "bn{stage}{letter}_branch{branch}",
    "shortcut": "res{stage}{letter}_branch1", "shortcut_norm": "bn{stage}{letter}_branch1",
    "top": "fpn_c5p5", "lateral": "fpn_c{stage}p{stage}", "output": "fpn_p{stage}",
    "rpn_conv": "rpn_model/rpn_conv_shared", "rpn_scores": "rpn_model/rpn_class_raw",
    "rpn_deltas": "rpn_model/rpn_bbox_pred",
    "fc": ("mrcnn_class_conv1", "mrcnn_class_conv2"), "fc_norm": ("mrcnn_class_bn1", "mrcnn_class_bn2"),
    "logits": "mrcnn_class_logits", "deltas": "mrcnn_bbox_fc",
    "mask_conv": "mrcnn_mask_conv{n}", "mask_norm": "mrcnn_mask_bn{n}",
    "deconv": "mrcnn_mask_deconv", "masks": "mrcnn_mask",
}
PYTORCH_MASK_RCNN = {
    "stem": "fpn.C1.0", "stem_norm": "fpn.C1.1",
    "conv": "fpn.C{stage}.{block}.conv{conv}", "norm": "fpn.C{stage}.{block}.bn{conv}",
    "shortcut": "fpn.C{stage}.{block}.downsample.0", "shortcut_norm": "fpn.C{stage}.{block}.downsample.1",
    "top": "fpn.P5_conv1", "lateral": "fpn.P{stage}_conv1", "output": "fpn.P{stage}_conv2.1",
    "rpn_conv": "rpn.conv_shared", "rpn_scores": "rpn.conv_class", "rpn_deltas": "rpn.conv_bbox",
    "fc": ("classifier.conv1", "classifier.conv2"), "fc_norm": ("classifier.bn1", "classifier.bn2"),
    "logits": "classifier.linear_class", "deltas": "classifier.linear_bbox",
    "mask_conv": "mask.conv{n}", "mask_norm": "mask.bn{n}", "deconv": "mask.deconv", "masks": "mask.conv5",
}


def backbone_name(form: str, stage: int, last: int = 0, block: int = 0, conv: int = 1) -> str:
    """A name of the backbone or the pyramid."""
    return form.format(stage=stage, layer=stage - 1, fine=stage - 2, coarse=5 - stage, lateral=4 - stage, last=last,
                       block=block, letter=chr(ord("a") + block), conv=conv, branch=f"2{'abc'[conv - 1]}")


def stacked_name(form: str, i: int) -> str:
    """A name of the i-th of a head's convolutions or norms."""
    return form.format(**{"i": i, "n": i + 1, "2i": 2 * i, "3i": 3 * i, "3i+1": 3 * i + 1})
