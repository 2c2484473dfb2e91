"""Every row of the tables: what it promises in docs/configs.md is what it does."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import yaml

from kmrcnn.config import Config
from kmrcnn.foreign import FAMILIES, ForeignKeyError, translate
from kmrcnn.foreign.reader import FIELDS, flatten
from tests.foreign import files

pytestmark = pytest.mark.once
ROOT = Path(__file__).resolve().parent.parent.parent
BASES = dict(zip([family.name for family in FAMILIES], [files.MASKRCNN_BENCHMARK] * 3 + [
    files.DETECTRON, files.LIANGHEMING], strict=True))
# Files in which keys matter that the base files make no use of: C4, policies, switches.
DETECTRON_C4 = {
    "MODEL.CONV_BODY": "ResNet.ResNet50_conv4_body", "FPN.FPN_ON": False, "FPN.MULTILEVEL_ROIS": False,
    "FPN.MULTILEVEL_RPN": False, "FAST_RCNN.ROI_BOX_HEAD": "ResNet.ResNet_roi_conv5_head",
    "MRCNN.ROI_MASK_HEAD": "mask_rcnn_heads.mask_rcnn_fcn_head_v0upshare", "MRCNN.RESOLUTION": 14}  # fmt: skip
C4 = {
    "MODEL.BACKBONE.CONV_BODY": "R-50-C4", "MODEL.RESNETS.BACKBONE_OUT_CHANNELS": 1024, "MODEL.RPN.USE_FPN": False,
    "MODEL.RPN.ANCHOR_STRIDE": (16,), "MODEL.ROI_HEADS.USE_FPN": False, "MODEL.MASK_ON": False,
    "MODEL.ROI_BOX_HEAD.POOLER_SCALES": (1 / 16,),
    "MODEL.ROI_BOX_HEAD.FEATURE_EXTRACTOR": "ResNet50Conv5ROIFeatureExtractor"}  # fmt: skip
SETTINGS = {
    "MODEL.RPN.POST_NMS_TOP_N_TRAIN": C4, "MODEL.RPN.POST_NMS_TOP_N_TEST": C4,
    "RPN.OUT_DIM_AS_IN_DIM": DETECTRON_C4, "RPN.OUT_DIM": {**DETECTRON_C4, "RPN.OUT_DIM_AS_IN_DIM": False},
    "RPN.SIZES": DETECTRON_C4, "RPN.ASPECT_RATIOS": DETECTRON_C4,
    "FAST_RCNN.NUM_STACKED_CONVS": {"FAST_RCNN.ROI_BOX_HEAD": "fast_rcnn_heads.roi_Xconv1fc_head"},
    "SOLVER.STEP_SIZE": {"SOLVER.LR_POLICY": "step"},
    "SOLVER.LRS": {"SOLVER.LR_POLICY": "steps_with_lrs", "SOLVER.LRS": [0.02, 0.002, 0.0002]},
    "TRAIN.ASPECT_HI": {"TRAIN.ASPECT_CROPPING": True}, "TRAIN.ASPECT_LO": {"TRAIN.ASPECT_CROPPING": True},
    "MODEL.ROI_BOX_HEAD.NUM_STACKED_CONVS": {"MODEL.ROI_BOX_HEAD.FEATURE_EXTRACTOR": "FPNXconv1fcFeatureExtractor"},
}  # fmt: skip
# Another value where half, twice or the opposite of the file's is none.
OTHERS = {
    "MODEL.WEIGHT": "R-101.pkl", "MODEL.BACKBONE.CONV_BODY": "R-101-FPN", "MODEL.BACKBONE.FREEZE_CONV_BODY_AT": 0,
    "MODEL.RPN.STRADDLE_THRESH": -1, "MODEL.RPN.ANCHOR_STRIDE": (4, 8, 16, 32, 128),
    "MODEL.ROI_BOX_HEAD.FEATURE_EXTRACTOR": "FPNXconv1fcFeatureExtractor",
    "MODEL.ROI_MASK_HEAD.CONV_LAYERS": (128, 128), "INPUT.MIN_SIZE_TRAIN": (640, 800),
    "MODEL.ROI_MASK_HEAD.FEATURE_EXTRACTOR": "ResNet50Conv5ROIFeatureExtractor",
    "MODEL.RESNETS.TRANS_FUNC": "BottleneckWithGN", "MODEL.RESNETS.STEM_FUNC": "StemWithGN",
    "DATASETS.TRAIN": ("mine",), "DATASETS.TEST": ("mine",), "SOLVER.WARMUP_METHOD": "constant", "DTYPE": "float16",
    "SOLVER.STEPS": (0, 5, 7), "TEST.EXPECTED_RESULTS": (("coco", "bbox", "AP", 0.3, 0.1),),
    "SOLVER.MAX_ITER": 5000, "SOLVER.TEST_PERIOD": 1000, "DATALOADER.SIZE_DIVISIBILITY": 64,
    "MODEL.CONV_BODY": "FPN.fpn_ResNet101_conv5_body", "RESNETS.TRANS_FUNC": "bottleneck_gn_transformation",
    "RESNETS.STEM_FUNC": "basic_gn_stem", "RESNETS.SHORTCUT_FUNC": "basic_gn_shortcut", "RESNETS.FREEZE_AT": 0,
    "RESNETS.IMAGENET_PRETRAINED_WEIGHTS": "mine.pth", "RPN.CLS_ACTIVATION": "softmax",
    "FAST_RCNN.ROI_BOX_HEAD": "head_builder.add_roi_Xconv1fc_head", "MODEL.NUM_CLASSES": 5,
    "MRCNN.ROI_MASK_HEAD": "mask_rcnn_heads.mask_rcnn_fcn_head_v1up", "SOLVER.LR_POLICY": "cosine_decay",
    "SOLVER.LRS": [0.02, 0.01, 0.0002], "SOLVER.TYPE": "Adam", "SOLVER.WARM_UP_METHOD": "constant",
    "TRAIN.WEIGHTS": "mine.pkl", "TRAIN.DATASETS": ("voc_2007_trainval",), "TRAIN.SCALES": (640, 800),
    "TRAIN.RPN_STRADDLE_THRESH": -1, "TRAIN.FREEZE_AT": 3, "TEST.DATASETS": ("mine",), "RNG_SEED": 5,
    "EXPECTED_RESULTS": [["coco_2014_minival", "mask", "AP", 0.3]], "gpus": "0,1", "model.backbone": "resnet18",
    "data.train_annotation_path": "a", "data.val_annotation_path": "b", "data.train_img_root": "c",
    "data.val_img_root": "d", "model.anchor_scales": (1.0, 1.26), "model.mask.mask_layers": (128, 128),
    "optim.optimizer": "SGD", "optim.milestones": (12, 24), "optim.epochs": 12, "optim.warm_up_epoch": 1,
}  # fmt: skip


def rows():
    return [pytest.param(family, row, id=f"{family.name.split()[0]}-{row.key}") for family in FAMILIES
            for row in family.rows if row.supported]


def other(key, value, default):
    """A value of the same type that is not the file's."""
    if key in OTHERS:
        return OTHERS[key]
    value = default if value is None else value
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value / 2 if isinstance(value, float) and value else value * 2 or 1
    if isinstance(value, list | tuple):
        return tuple(other("", item, item) for item in value) or ("something",)
    return "something else"


@pytest.mark.parametrize(("family", "row"), rows())
def test_a_row_sets_what_it_names_or_refuses(family, row):
    tree, setting = yaml.safe_load(BASES[family.name]), SETTINGS.get(row.key, {})
    base = translate(family, tree, setting)
    now = {**flatten(tree), **setting}.get(row.key)
    try:
        changed = translate(family, tree, {**setting, row.key: other(row.key, now, row.default)})
    except ForeignKeyError as error:
        # It has to agree with others, or is built in: then all other values are refused by name.
        assert row.key in str(error) and ("found" in str(error)), error
        return
    if row.key == "MODEL.RPN.FPN_POST_NMS_PER_BATCH":
        return  # both values mean the same here
    found = differences(base, changed)
    assert found, f"{row.key}: another value changes nothing"
    if row.targets:
        assert found & set(row.targets), f"{row.key}: names {row.targets}, changes {sorted(found)}"


def differences(one, two):
    """What two recipes have otherwise, by the names that targets have."""
    flat = [{**recipe["config"], **{f"inference.{key}": value for key, value in recipe["inference"].items()},
             **{key: recipe.get(key) for key in FIELDS if key != "inference"}, **recipe["stages"][0]}
            for recipe in (one, two)]
    return {key for key in flat[0].keys() | flat[1].keys() if repr(flat[0].get(key)) != repr(flat[1].get(key))}


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name.split()[0])
def test_absent_keys_are_errors_or_notes(family):
    tree = yaml.safe_load(BASES[family.name])
    for row in family.rows:
        if row.supported:
            continue
        value = other("", row.default, row.default)
        if row.harmless:
            assert any(row.key in note for note in translate(family, tree, {row.key: value})["notes"]), row.key
        else:
            with pytest.raises(ForeignKeyError, match=rf"{row.key}: found .* not supported: "):
                translate(family, tree, {row.key: value})


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name.split()[0])
def test_targets_exist_and_keys_are_unique(family):
    keys = [row.key for row in family.rows]
    assert len(keys) == len(set(keys))
    for row in family.rows:
        for target in row.targets:
            name = target.removeprefix("inference.")
            assert hasattr(Config, name) if name.isupper() else name in FIELDS, f"{row.key}: {target}"
    for target in family.constants:
        assert hasattr(Config, target) if target.isupper() else target in FIELDS, target


@pytest.mark.parametrize("text", [files.MASKRCNN_BENCHMARK, files.DETECTRON])
def test_every_key_of_the_base_files_is_supported(text):
    family = next(family for family in FAMILIES if BASES[family.name] is text)
    assert all(family.table[key].supported for key in flatten(yaml.safe_load(text)))


def load_tool():
    spec = importlib.util.spec_from_file_location("configs_table", ROOT / "tools" / "configs_table.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool


@pytest.mark.parametrize("name", ["configs.md", "recipes.md"])
def test_the_documents_show_the_tables(name):
    tool, text = load_tool(), (ROOT / "docs" / name).read_text(encoding="utf-8")
    assert tool.updated(name, text) == text, "run python tools/configs_table.py"


def test_the_document_has_a_row_for_every_key():
    text = (ROOT / "docs" / "configs.md").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    assert all("| maps to " in line or "| not supported: " in line for line in lines)
    for family in FAMILIES:
        assert all(any(line.startswith(f"| `{row.key}` |") for line in lines) for row in family.rows)
