"""Config: defaults, derived values, errors, files and overrides."""

from __future__ import annotations

import ast
import copy
import inspect
import pathlib
import pickle

import numpy as np
import pytest

from kmrcnn.config import PRESETS, Config
from kmrcnn.config_rules import PASTE_RULES

pytestmark = pytest.mark.once


class SampleConfig(Config):
    NAME = "Sample"
    NUM_CLASSES = 3
    MY_FOLDER = "somewhere"


def backbone(input_image, stage5=True, train_bn=None):
    return input_image, stage5


def test_defaults_are_matterports():
    config = Config()
    assert (config.BACKBONE, config.IMAGE_MAX_DIM, config.PRE_NMS_LIMIT, config.TRAIN_BN) == (
        "resnet101", 1024, 6000, False)
    assert config.RPN_ANCHOR_SCALES == (32, 64, 128, 256, 512)
    np.testing.assert_allclose(config.MEAN_PIXEL, [123.7, 116.8, 103.9])
    assert list(config.IMAGE_SHAPE) == [1024, 1024, 3]


@pytest.mark.parametrize(("num_classes", "size"), [(81, 93), (2, 14), (4, 16)])
def test_image_meta_size(num_classes, size):
    config = Config()
    config.NUM_CLASSES = num_classes
    assert config.IMAGE_META_SIZE == size


def test_derived_values_follow_an_instance():
    config = SampleConfig()
    config.IMAGES_PER_GPU, config.GPU_COUNT = 3, 2
    config.IMAGE_RESIZE_MODE, config.IMAGE_MIN_DIM = "crop", 512
    assert config.BATCH_SIZE == 6
    assert list(config.IMAGE_SHAPE) == [512, 512, 3]


@pytest.mark.parametrize("key", ["BATCH_SIZE", "IMAGE_SHAPE", "IMAGE_META_SIZE"])
def test_derived_values_cannot_be_set(key):
    with pytest.raises(AttributeError, match=f"{key} cannot be set: it follows from"):
        setattr(SampleConfig(), key, 1)
    with pytest.raises(AttributeError, match=key):
        type("Wrong", (Config,), {key: 1})


def test_instances_share_no_lists_dicts_or_arrays():
    config = SampleConfig()
    config.LOSS_WEIGHTS["mrcnn_mask_loss"] = 5.0
    config.MEAN_PIXEL[:] = 0
    config.MASK_SHAPE.append(1)
    assert Config().LOSS_WEIGHTS["mrcnn_mask_loss"] == 1.0
    assert Config().MEAN_PIXEL[0] == 123.7
    assert Config.MASK_SHAPE == [28, 28]


def test_misspelt_key_names_the_nearest():
    with pytest.raises(AttributeError, match="IMAGE_PER_GPU: did you mean IMAGES_PER_GPU"):
        SampleConfig().IMAGE_PER_GPU = 1
    with pytest.raises(AttributeError, match="NUM_CLASS: did you mean NUM_CLASSES"):
        type("Wrong", (Config,), {"NUM_CLASS": 2})
    with pytest.raises(AttributeError, match="did you mean LEARNING_RATE"):
        SampleConfig().override(["LEARNING_RATES=0.1"])


def test_own_settings_are_allowed_on_the_class_only():
    config = SampleConfig()
    config.MY_FOLDER = "elsewhere"
    assert config.to_dict()["MY_FOLDER"] == "elsewhere"
    with pytest.raises(AttributeError, match="declare it as a class attribute"):
        config.ANOTHER_ONE = 1
    type("Stage", (Config,), {"LEARNING_RATE_2": 0.1})


def test_plain_function_as_backbone_stays_a_function():
    class Function(SampleConfig):
        BACKBONE = backbone

        def COMPUTE_BACKBONE_SHAPE(image_shape):
            return image_shape

    config = Function()
    config.validate()
    assert config.BACKBONE("image", stage5=False) == ("image", False)
    assert config.COMPUTE_BACKBONE_SHAPE("shape") == "shape"


WRONG = [
    ("NAME", None, "a text"),
    ("NUM_CLASSES", 1, "at least 2"),
    ("IMAGES_PER_GPU", 0, "at least 1"),
    ("IMAGES_PER_GPU", True, "an integer"),
    ("IMAGES_PER_GPU", 2.0, "an integer"),
    ("LEARNING_RATE", "0.1", "a number"),
    ("LEARNING_RATE", float("nan"), "a number"),
    ("RPN_NMS_THRESHOLD", 1.5, r"\[0, 1\]"),
    ("USE_MINI_MASK", 1, "one of"),
    ("TRAIN_BN", "no", "one of"),
    ("BACKBONE", "resnet51", "nearest: 'resnet50'"),
    ("IMAGE_RESIZE_MODE", "pad46", "nearest: 'pad64'"),
    ("IMAGE_MAX_DIM", 1000, "multiple of IMAGE_DIVISOR=64"),
    ("IMAGE_DIVISOR", 16, "multiple of the stride 32"),
    ("IMAGE_SHAPES", [(512, 500)], "multiples of IMAGE_DIVISOR"),
    ("IMAGE_SHAPES", [(512, 512)] * 9, "1 to 8"),
    ("IMAGE_SHAPES", 512, "pairs"),
    ("MASK_SHAPE", [14, 14], "twice MASK_POOL_SIZE"),
    ("RPN_ANCHOR_SCALES", (32, 64), "one scale for each stride"),
    ("BACKBONE_STRIDES", [8, 16, 32, 64, 128], r"\[4, 8, 16, 32, 64\]"),
    ("MEAN_PIXEL", [1.0], "3 numbers"),
    ("BBOX_STD_DEV", [0.1, 0.1], "4 numbers"),
    ("LOSS_WEIGHTS", {"mask_loss": 1.0}, "nearest: 'mrcnn_mask_loss'"),
    ("RPN_NEGATIVE_IOU", 0.8, "at most 0.7"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value", "words"), WRONG)
def test_validate_names_key_found_and_expected(key, value, words):
    config = SampleConfig()
    config.validate()
    setattr(config, key, value)
    with pytest.raises(ValueError, match=f"{key}.*{words}"):
        config.validate()


def test_validate_modes_norm_and_dataset():
    config = SampleConfig()
    config.IMAGE_RESIZE_MODE = "pad64"
    with pytest.raises(ValueError, match="IMAGE_MIN_DIM: found 800, expected a multiple of 64"):
        config.validate()
    config.IMAGE_DIVISOR = 32
    config.validate()
    config = SampleConfig()
    config.NORM, config.TOP_DOWN_PYRAMID_SIZE = "gn", 48
    with pytest.raises(ValueError, match="TOP_DOWN_PYRAMID_SIZE.*GN_GROUPS"):
        config.validate()
    with pytest.raises(ValueError, match="NUM_CLASSES: found 3, expected 5"):
        SampleConfig().validate(num_classes=5)
    SampleConfig().validate(num_classes=3)


def test_override_reads_python_and_yaml_texts():
    config = SampleConfig()
    config.override(["IMAGE_MAX_DIM=512", "RPN_ANCHOR_SCALES=[8, 16, 32, 64, 128]", "TRAIN_BN=null", "NAME=new name",
                     "LEARNING_RATE=1e-2", "USE_MINI_MASK=false", "MEAN_PIXEL=(1, 2, 3)", "BACKBONE=resnet18"])
    config.validate()
    assert (config.IMAGE_MAX_DIM, config.TRAIN_BN, config.NAME, config.LEARNING_RATE) == (512, None, "new name", 0.01)
    assert config.RPN_ANCHOR_SCALES == (8, 16, 32, 64, 128)
    assert config.USE_MINI_MASK is False
    assert isinstance(config.MEAN_PIXEL, np.ndarray)
    with pytest.raises(ValueError, match="expected KEY=VALUE"):
        config.override(["IMAGE_MAX_DIM"])
    with pytest.raises(ValueError, match="LEARNING_RATE: found 'fast'"):
        config.override(["LEARNING_RATE=fast"])


def test_override_keeps_texts_and_own_kinds():
    class Own(SampleConfig):
        MY_SIZES, MY_WEIGHTS = (1, 2), np.array([1.0, 2.0])

    config = Own()
    config.override(["NAME=2026-11-21", "MY_FOLDER=12", "BACKBONE='resnet50'", "MY_SIZES=[3, 4]", "MY_WEIGHTS=5, 6"])
    assert (config.NAME, config.MY_FOLDER, config.BACKBONE) == ("2026-11-21", "12", "resnet50")
    assert config.MY_SIZES == (3, 4)
    np.testing.assert_array_equal(config.MY_WEIGHTS, np.array([5.0, 6.0]))


def _equal(one: Config, other: Config) -> bool:
    first, second = one.to_dict(), other.to_dict()
    return first.keys() == second.keys() and all(
        type(first[key]) is type(second[key]) and np.array_equal(first[key], second[key]) for key in first)


def test_yaml_round_trip(tmp_path):
    class Function(SampleConfig):
        BACKBONE = backbone
        MY_SIZES, MY_WEIGHTS = (1, 2), np.array([1.0, 2.0])

    config = Function()
    config.override(["IMAGE_SHAPES=[[512, 640], [640, 512]]", "LEARNING_RATE=0.00001", "MEAN_PIXEL=[1.5, 2, 3]"])
    config.to_yaml(tmp_path / "config.yaml")
    assert "\nBATCH_SIZE" not in (tmp_path / "config.yaml").read_text()
    again = Function.from_yaml(tmp_path / "config.yaml")
    assert again.BACKBONE is backbone
    assert _equal(config, again)


def test_yaml_errors_name_the_file(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("IMAGE_MAXDIM: 512\n")
    with pytest.raises(AttributeError, match="config.yaml: unknown setting IMAGE_MAXDIM: did you mean IMAGE_MAX_DIM"):
        SampleConfig.from_yaml(path)
    path.write_text("- 1\n")
    with pytest.raises(ValueError, match="expected a mapping"):
        SampleConfig.from_yaml(path)
    path.write_text("LEARNING_RATE: 1e-3\n")
    assert SampleConfig.from_yaml(path).LEARNING_RATE == 0.001
    path.write_text("LR_STEPS: [6e4, 8e4]\nLR_TOTAL_STEPS: 9e4\nSTEPS_PER_EPOCH: 1e3\nBIAS_WEIGHT_DECAY: 1e-4\n"
                    "LR_SCHEDULE: multistep\nCHECKPOINT_BEST: val_loss\nIMAGE_SHAPES: [[64, 128]]\n")
    config = SampleConfig.from_yaml(path)
    config.validate()
    assert (config.LR_STEPS, config.LR_TOTAL_STEPS, config.STEPS_PER_EPOCH) == ((60000, 80000), 90000, 1000)
    assert (config.BIAS_WEIGHT_DECAY, config.CHECKPOINT_BEST) == (1e-4, "val_loss")


def test_local_function_cannot_be_written(tmp_path):
    config = SampleConfig()
    config.BACKBONE = lambda image: image
    with pytest.raises(ValueError, match="BACKBONE: cannot write"):
        config.to_yaml(tmp_path / "config.yaml")
    config = SampleConfig()
    config.MY_FOLDER = tmp_path
    with pytest.raises(ValueError, match="MY_FOLDER: cannot write a .*Path"):
        config.to_yaml(tmp_path / "config.yaml")
    assert not list(tmp_path.iterdir())


def test_pickle_keeps_class_values_and_own_settings():
    class Local(SampleConfig):
        RPN_ANCHOR_STRIDE = 2

    for cls in (SampleConfig, Local):
        config = cls()
        config.IMAGES_PER_GPU = 7
        again = pickle.loads(pickle.dumps(config))
        assert _equal(config, again)
        assert again.BATCH_SIZE == 7
    assert type(pickle.loads(pickle.dumps(SampleConfig()))) is SampleConfig


def test_copy_is_independent():
    config = SampleConfig()
    other = copy.deepcopy(config)
    other.LOSS_WEIGHTS["mrcnn_mask_loss"] = 2.0
    assert type(other) is SampleConfig
    assert config.LOSS_WEIGHTS["mrcnn_mask_loss"] == 1.0


def test_display_prints_every_setting_once(capsys):
    SampleConfig().display()
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "Configurations:"
    keys = [line.split()[0] for line in lines[2:] if line]
    assert keys == sorted(set(keys))
    assert {"BATCH_SIZE", "IMAGE_SHAPE", "MY_FOLDER", "NAME"} <= set(keys)
    assert f"{'BATCH_SIZE':30} 2" in lines


def test_every_setting_has_a_rule():
    from kmrcnn.config_rules import RULES

    assert set(RULES) == set(Config().to_dict())
    with pytest.raises(ValueError, match="K: found 1, expected a text"):
        RULES["NAME"]("K", 1)


# ---- presets


class _Detector(Config):
    NAME, NUM_CLASSES = "detector", 91


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_valid_and_holds_its_table(preset):
    config = type("Preset", (_Detector,), {"PRESET": preset})()
    config.validate()
    for key, value in PRESETS[preset].items():
        np.testing.assert_equal(getattr(config, key), value)


def test_what_a_subclass_sets_stays_whatever_the_preset():
    class Mine(_Detector):
        PRESET = "torchvision"
        DETECTION_NMS_THRESHOLD = 0.4

    class Child(Mine):
        IMAGE_MIN_DIM = 640

    config = Child()
    assert (config.DETECTION_NMS_THRESHOLD, config.IMAGE_MIN_DIM, config.RPN_SCORES) == (0.4, 640, "sigmoid")
    config.PRESET = "matterport"
    assert (config.DETECTION_NMS_THRESHOLD, config.IMAGE_MIN_DIM, config.RPN_SCORES) == (0.4, 640, "softmax")


def test_a_preset_changed_on_an_instance_leaves_nothing_of_the_former_one():
    config = _Detector()
    for preset in PRESETS:
        config.PRESET = preset
    config.PRESET = "matterport"
    np.testing.assert_equal(config.to_dict(), _Detector().to_dict())


def test_a_preset_survives_files_and_overrides_in_any_order(tmp_path):
    config = _Detector.from_dict({"RPN_CONVS": 2, "PRESET": "torchvision"})
    assert config.RPN_CONVS == 2 and config.RPN_SCORES == "sigmoid"
    config.to_yaml(tmp_path / "config.yaml")
    again = _Detector.from_yaml(tmp_path / "config.yaml")
    np.testing.assert_equal(again.to_dict(), config.to_dict())
    np.testing.assert_equal(pickle.loads(pickle.dumps(config)).to_dict(), config.to_dict())


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(ValueError, match="PRESET: found 'torchvison'.*nearest: 'torchvision'"):
        _Detector().PRESET = "torchvison"


def test_preset_tables_are_not_shared_with_instances():
    config = type("Preset", (_Detector,), {"PRESET": "torchvision"})()
    config.MEAN_PIXEL[0] = 0
    assert PRESETS["torchvision"]["MEAN_PIXEL"][0] > 100


def test_no_preset_name_occurs_outside_the_configuration_and_the_catalogue():
    """Presets are only tables: no code may ask which one is used."""
    package = pathlib.Path(inspect.getfile(Config)).parent
    tables = {"config.py", "importers/catalogue.py", "foreign/detectron.py", "foreign/liangheming.py",
              "foreign/maskrcnn_benchmark.py"}
    # The rules of paste_masks carry names of systems in the public interface.
    pasting = {"config_rules.py", "ops/masks.py", "ops/rle.py", "ops/torch_paste.py", "kernels/paste.py",
               "unmold.py", "pasting.py", "data/paste.py"}
    found = []
    for path in sorted(package.rglob("*.py")):
        name = path.relative_to(package).as_posix()
        forbidden = set() if name in tables else set(PRESETS) - (set(PASTE_RULES) if name in pasting else set())
        found += [f"{name}:{node.lineno} {node.value}" for node in ast.walk(ast.parse(path.read_text("utf-8")))
                  if isinstance(node, ast.Constant) and node.value in forbidden]
    assert found == []
