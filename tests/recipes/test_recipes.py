"""Recipes and foreign files as they are used: loaded, changed, and turned into models and schedules."""

from __future__ import annotations

import re

import keras
import numpy as np
import pytest
import yaml

from kmrcnn import MaskRCNN, recipes
from kmrcnn.engine.optimizer import default_optimizer
from kmrcnn.engine.stages import LAYER_STAGES
from kmrcnn.engine.tuning import tuning_of
from kmrcnn.importers import catalogue
from tests.foreign import files

SMALL = {
    "NUM_CLASSES": 3, "IMAGE_MIN_DIM": 64, "IMAGE_MAX_DIM": 64, "GPU_COUNT": 1, "IMAGES_PER_GPU": 16,
    "BACKBONE": "resnet18", "TOP_DOWN_PYRAMID_SIZE": 8, "RPN_CONV_SIZE": 8, "MASK_CONV_SIZE": 8,
    "FPN_CLASSIF_FC_LAYERS_SIZE": 8}  # fmt: skip

DETECTRON_C4 = [
    "MODEL.CONV_BODY=ResNet.ResNet50_conv4_body", "FPN.FPN_ON=False", "FPN.MULTILEVEL_ROIS=False",
    "FPN.MULTILEVEL_RPN=False", "FAST_RCNN.ROI_BOX_HEAD=ResNet.ResNet_roi_conv5_head",
    "MRCNN.ROI_MASK_HEAD=mask_rcnn_heads.mask_rcnn_fcn_head_v0upshare", "MRCNN.RESOLUTION=14"]  # fmt: skip


@pytest.fixture
def file(tmp_path):
    def write(text, name="e2e.yaml"):
        (tmp_path / name).write_text(text, encoding="utf-8")
        return tmp_path / name

    return write


@pytest.mark.parametrize("text", [files.MASKRCNN_BENCHMARK, files.DETECTRON])
def test_a_base_file_gives_its_model_and_its_schedule(file, text, tmp_path):
    recipe = recipes.load(file(text))
    config = recipe.config(**SMALL)
    config.validate()
    model = MaskRCNN("training", config, str(tmp_path))
    model.set_trainable(LAYER_STAGES[recipe.stages[0].layers], verbose=0)
    learns = {layer.name: layer.trainable for layer in model.keras_model.layers if layer.weights}
    names = ("conv1", "res2a_branch2a", "res3a_branch2a", "fpn_p2", "mrcnn_mask_conv4")
    assert [learns[name] for name in names] == [False, False, True, True, True]
    assert "mrcnn_class_conv2" in learns and "mrcnn_mask_conv5" not in learns
    assert (recipe.weights, config.STEPS_PER_EPOCH * recipe.stages[0].epochs, recipe.stages[0].layers) == (
        "detectron_imagenet_R-50", 90000, "3+")
    rates = [rate(config, step)
             for step in (0, 250, 499, 500, 59999, 60000, 80000)]
    # The reference's table for a base of 0.02 and 500 steps of linear warm-up from a third.
    np.testing.assert_allclose(rates, [.0066667, .0133333, .0199733, .02, .02, .002, .0002], rtol=1e-4)


def rate(config, step):
    schedule = default_optimizer(config)._learning_rate
    return float(schedule(step))


@pytest.mark.once
def test_a_file_may_be_based_on_a_recipe_of_ours(file):
    for base in ("1x", "1x.yaml"):
        recipe = recipes.load(file(f"_BASE_: {base}\nconfig: {{IMAGE_MIN_DIM: 400}}\n", "own.yaml"))
        assert recipe.settings["IMAGE_MIN_DIM"] == 400
        assert recipe.stages == recipes.load("1x").stages
    with pytest.raises(ValueError, match="own.yaml: _BASE_: found '4x', expected a file, relative to .*, or one of 1x"):
        recipes.load(file("_BASE_: 4x\n", "own.yaml"))


@pytest.mark.once
def test_a_misspelt_key_of_an_override_gets_the_other_systems_hint(file):
    with pytest.raises(ValueError, match=r"SOLVER.BASE_LRR: found, but .*did you mean SOLVER.BASE_L"):
        recipes.load(file(files.MASKRCNN_BENCHMARK), ["SOLVER.BASE_LRR", "1"])


@pytest.mark.once
def test_both_families_mean_the_same_network(file):
    one, two = (recipes.load(file(text)).config(PRESET="detectron", GPU_COUNT=1, IMAGES_PER_GPU=2).to_dict()
                for text in (files.MASKRCNN_BENCHMARK, files.DETECTRON))
    assert different(one, two) == {"NORM_WEIGHT_DECAY", "PRECISION", "SEED", "STD_PIXEL"}


def different(one, two):
    return {key for key in one if not np.array_equal(np.asarray(one[key], object), np.asarray(two[key], object))}


@pytest.mark.once
def test_c4_is_the_catalogues_network(file):
    config = recipes.load(file(files.C4)).config()
    config.validate()
    for key, value in catalogue.find("maskrcnn_benchmark_e2e_mask_rcnn_R_50_C4_1x").config.items():
        assert np.array_equal(np.asarray(getattr(config, key), object), np.asarray(value, object)) or key == "NAME", key


@pytest.mark.once
@pytest.mark.parametrize("others", [[], DETECTRON_C4])
def test_files_of_faster_rcnn_say_nothing_about_masks(file, others):
    """Neither FPN nor C4: both systems' defaults of the mask head belong to one of them."""
    tree = yaml.safe_load(files.MASKRCNN_BENCHMARK if not others else files.C4)
    tree["MODEL"].pop("ROI_MASK_HEAD")
    theirs = recipes.load(file(yaml.safe_dump(tree)), ["MODEL.MASK_ON=False"])
    tree = yaml.safe_load(files.DETECTRON)
    tree.pop("MRCNN")
    others = [item for item in others if "MRCNN" not in item]
    for recipe in (theirs, recipes.load(file(yaml.safe_dump(tree)), ["MODEL.MASK_ON=False", *others])):
        for inference in (False, True):
            recipe.config(inference=inference).validate()
        assert recipe.config().PREDICT_MASKS is False and recipe.config().NECK == (None if others else "fpn")


@pytest.mark.once
def test_detectrons_steps_begin_with_0(file):
    """It asserts that; Detectron.pytorch passes over the first step, whatever it is."""
    path, policy = file(files.DETECTRON), ["SOLVER.LR_POLICY=steps_with_lrs"]
    with pytest.raises(ValueError, match=r"SOLVER.STEPS: found \(60000, 80000\), expected 0 as the first"):
        recipes.load(path, ["SOLVER.STEPS=[60000, 80000]"])
    config = recipes.load(path, [*policy, "SOLVER.STEPS=[0]", "SOLVER.LRS=[0.3]"]).config()
    config.validate()
    assert rate(config, 0) == pytest.approx(0.1) and rate(config, 85000) == pytest.approx(0.3)
    with pytest.raises(ValueError, match="SOLVER.LRS: found .*expected 3 rates above 0"):
        recipes.load(path, [*policy, "SOLVER.LRS=[0.0, 0.1, 0.01]"])


@pytest.mark.once
def test_detectron_pytorch_counts_the_biases_of_group_normalisation_among_biases(file):
    groups = {}
    for decayed in (False, True):
        config = recipes.load(file(files.DETECTRON), [f"SOLVER.BIAS_WEIGHT_DECAY={decayed}"]).config()
        variables = [keras.Variable(1.0, name=name) for name in ("kernel", "bias", "beta", "gamma")]
        groups[decayed] = [tuning_of(config).groups.decay(v, config.WEIGHT_DECAY) for v in variables]
    assert groups == {False: [1e-4, 0, 0, 0], True: [1e-4, 1e-4, 1e-4, 0]}


@pytest.mark.once
@pytest.mark.parametrize(("others", "last_stage"), [([], False), (DETECTRON_C4, True)])
def test_a_frozen_body_includes_the_fpn_but_not_the_stage_in_the_heads(file, others, last_stage):
    recipe = recipes.load(file(files.DETECTRON), ["TRAIN.FREEZE_CONV_BODY=True", *others])
    layers = re.compile(recipe.stages[0].layers)
    assert [name for name in ("conv1", "res4a_branch2a", "fpn_c5p5", "fpn_p2") if layers.fullmatch(name)] == []
    assert all(layers.fullmatch(name) for name in ("rpn_conv_shared", "mrcnn_class_logits", "mrcnn_mask"))
    assert all(bool(layers.fullmatch(name)) == last_stage for name in ("res5a_branch2a", "bn5a_branch2a"))


@pytest.mark.once
def test_liangheming_is_a_cosine_over_passes_with_an_average(file):
    recipe = recipes.load(file(files.LIANGHEMING), ["optim.lr", "0.0002"])
    config = recipe.config(images=117266, GPU_COUNT=1)
    assert (config.OPTIMIZER, config.LR_SCHEDULE, config.LR_MIN_FACTOR, config.EMA_DECAY, config.LEARNING_RATE) == (
        "adam", "cosine", 0.1, 0.9999, 0.0002)
    assert (config.NUM_CLASSES, config.STEPS_PER_EPOCH, recipe.weights) == (81, 29317, "torchvision_resnet50_v1")
    assert recipe.config(images=117266).STEPS_PER_EPOCH == 7330
    assert any("IoU" in note for note in recipe.notes)
    unnamed = recipes.load(file(files.LIANGHEMING.replace("  backbone: resnet50\n", "")))
    assert (unnamed.settings["BACKBONE"], unnamed.weights) == ("resnet18", "torchvision_resnet18_v1")
    own = recipes.load("liangheming").config()
    assert own.AUGMENTATION == config.AUGMENTATION
    assert {"Noise": {"probability": 0.5}} in own.AUGMENTATION[0]["OneOf"]["augmentations"]


@pytest.mark.once
def test_liangheming_s_milestones_and_warmup(file):
    """His own class: sorted milestones, the first cosine behind the warm-up; none: a constant rate."""
    def rates(*overrides):
        config = recipes.load(file(files.LIANGHEMING), overrides).config(STEPS_PER_EPOCH=10, GPU_COUNT=4)
        config.validate()
        return [rate(config, 10 * epoch) for epoch in (1, 2, 13, 24)]

    assert rates("optim.warm_up_epoch=2") == pytest.approx([5e-5, 1e-4, 5.5e-5, 1e-5])
    assert rates("optim.warm_up_epoch=2", "optim.milestones=[24, 13]") == pytest.approx([5e-5, 1e-4, 1e-5, 1e-6])
    assert rates("optim.warm_up_epoch=2", "optim.milestones=[]") == pytest.approx([5e-5, 1e-4, 1e-4, 1e-4])
    with pytest.raises(ValueError, match="optim.warm_up_epoch: found 24, expected fewer"):
        rates("optim.warm_up_epoch=24")


@pytest.mark.once
def test_numbers_may_be_written_in_other_ways(file):
    """Whole numbers as 9e4, and rates as 1e-3, which YAML 1.1 reads as text."""
    recipe = recipes.load(file(files.MASKRCNN_BENCHMARK), ["SOLVER.MAX_ITER", "9e4", "SOLVER.IMS_PER_BATCH", "8.0"])
    config = recipe.config()
    config.validate()
    assert (config.STEPS_PER_EPOCH * recipe.stages[0].epochs, config.BATCH_SIZE) == (90000, 8)
    with pytest.raises(ValueError, match="e2e.yaml: a run of 90000.5 steps"):
        recipes.load(file(files.MASKRCNN_BENCHMARK), ["SOLVER.MAX_ITER=90000.5"])
    own = recipes.load(file("config:\nstages: [{layers: all, epochs: 2, learning_rate: 1e-3}]\n"))
    assert own.stages[0].learning_rate == 0.001 and own.settings == {}
    for stage in ("epochs: two", "epochs: 2.5", "epochs: 2, learning_rate: fast"):
        with pytest.raises(ValueError, match="stages: found"):
            recipes.load(file(f"stages: [{{layers: all, {stage}}}]\n"))


@pytest.mark.once
def test_an_epoch_is_a_pass_unless_its_steps_are_given(file):
    for source in ("liangheming", file(files.LIANGHEMING)):
        recipe = recipes.load(source, ["STEPS_PER_EPOCH=5"])
        assert not recipe.one_pass and recipe.config(images=1000).STEPS_PER_EPOCH == 5
        assert recipes.load(source, ["SEED=5"]).config(images=1000).STEPS_PER_EPOCH == 63


@pytest.mark.once
def test_overrides_are_the_files_keys_and_ours(file):
    path = file(files.MASKRCNN_BENCHMARK)
    recipe = recipes.load(path, ["SOLVER.IMS_PER_BATCH", "2", "SOLVER.STEPS", "(480000, 640000)",
                                 "SOLVER.MAX_ITER=720000", "SOLVER.BASE_LR", "2.5e-3", "SEED=7"])
    config = recipe.config()
    assert (config.BATCH_SIZE, config.LEARNING_RATE, config.SEED) == (2, 0.0025, 7)
    assert tuple(config.LR_STEPS) == (480000, 640000)
    assert config.STEPS_PER_EPOCH * recipe.stages[0].epochs == 720000
    wrongs = ((["SOLVER.BASE_LRS", "1"], "BASE_LRS"), (["SOLVER.BASE_LR", "fast"], "SOLVER.BASE_LR: found 'fast'"),
              (["SOLVER.BASE_LR"], "found no value"),
              (["MODEL.KEYPOINT_ON", "True"], "KEYPOINT_ON.*not here yet"),
              (["MODEL.BACKBONE.CONV_BODY", "R2-50-FPN"], "CONV_BODY.*Res2Net is not here yet"))
    for wrong, message in wrongs:
        with pytest.raises(ValueError, match=f"e2e.yaml: .*{message}"):
            recipes.load(path, wrong)


@pytest.mark.once
def test_unknown_and_former_keys(file):
    with pytest.raises(ValueError, match=r"MODEL.MASKS_ON: found, but .*did you mean MODEL.MASK_ON"):
        recipes.load(file(files.MASKRCNN_BENCHMARK.replace("MASK_ON", "MASKS_ON")))
    old = files.MASKRCNN_BENCHMARK.replace("RESNETS: {BACKBONE_OUT_CHANNELS: 256}", "").replace(
        'CONV_BODY: "R-50-FPN"', 'CONV_BODY: "R-50-FPN", OUT_CHANNELS: 256')
    assert recipes.load(file(old)).config().TOP_DOWN_PYRAMID_SIZE == 256
    with pytest.raises(ValueError, match="belong to no system"):
        recipes.load(file("a: 1"))


@pytest.mark.once
def test_files_may_differ_from_others(file):
    file(files.MASKRCNN_BENCHMARK, "base.yaml")
    child = file("_BASE_: base.yaml\nSOLVER: {MAX_ITER: 180000, STEPS: [120000, 160000]}\n", "child.yaml")
    recipe = recipes.load(child)
    assert (tuple(recipe.config().LR_STEPS), recipe.config().LEARNING_RATE, recipe.stages[0].epochs) == (
        (120000, 160000), 0.02, 72)
    with pytest.raises(ValueError, match="goes round in a circle"):
        recipes.load(file("_BASE_: loop.yaml\n", "loop.yaml"))


@pytest.mark.once
@pytest.mark.parametrize("name", recipes.names())
def test_our_recipes_are_whole(name):
    recipe = recipes.load(name)
    for inference in (False, True):
        recipe.config(inference=inference).validate()
    assert recipe.about and recipe.command and recipe.measured_by and recipe.source
    assert f"--recipe={name}" in recipe.command or recipe.command == f"python samples/{name}.py"
    if recipe.weights:
        assert catalogue.find(recipe.weights).kind == "backbone"
    if recipe.expected:
        assert {"box_ap", "mask_ap", "data"} <= recipe.expected.keys() and recipe.hardware and recipe.time


@pytest.mark.once
def test_1x_is_what_the_file_of_its_system_says(file):
    ours, theirs = recipes.load("1x"), recipes.load(file(files.MASKRCNN_BENCHMARK)).on_devices(8)
    one, two = ours.config().to_dict(), theirs.config(NAME="coco").to_dict()
    assert different(one, two) == {"LOADER_WORKERS", "VALIDATION_STEPS", "STD_PIXEL", "PRECISION"}
    assert (ours.stages, ours.weights) == (theirs.stages, theirs.weights)


@pytest.mark.once
def test_detection_does_not_complete_the_batch_of_training(file):
    """Images an inference model takes at once: one, or as many as the recipe or its user says."""
    def batch(source, *overrides):
        config = recipes.load(source, overrides).on_devices(1).config(inference=True)
        return config.GPU_COUNT, config.IMAGES_PER_GPU

    single = [recipes.load("lsj").config(inference=True), recipes.load(file(files.DETECTRON)).config(inference=True)]
    assert [config.BATCH_SIZE for config in single] == [1, 1]
    assert [batch(name) for name in ("1x", "lsj", "nuclei", "shapes")] == [(1, 1)] * 3 + [(1, 8)]
    assert [batch(file(text)) for text in (files.DETECTRON, files.LIANGHEMING)] == [(1, 1)] * 2
    path = file(files.MASKRCNN_BENCHMARK)
    assert batch(path) == (1, 8) and batch(path, "TEST.IMS_PER_BATCH=16") == (1, 16)
    assert recipes.load("1x", ["IMAGES_PER_GPU=4"]).config(inference=True).BATCH_SIZE == 4


@pytest.mark.once
def test_a_smaller_batch_keeps_the_images_of_a_run():
    recipe = recipes.load("1x", ["GPU_COUNT=1"])
    assert recipe.config().STEPS_PER_EPOCH == 20000 and recipe.config(STEPS_PER_EPOCH=7).STEPS_PER_EPOCH == 7
    with pytest.raises(ValueError, match="multiple of the 3 devices"):
        recipes.load("1x").on_devices(3)


@pytest.mark.once
def test_stages_run_one_after_the_other():
    calls = []

    class Model:
        def train(self, *arguments, **keywords):
            calls.append((*arguments, keywords))

    recipes.load("matterport").train(Model(), "a", "b", resume=True)
    assert calls == [("a", "b", 0.001, 40, "heads", {"resume": True}), ("a", "b", 0.001, 120, "4+", {"resume": True}),
                     ("a", "b", 0.0001, 160, "all", {"resume": True})]


@pytest.mark.once
def test_wrong_names_and_files(file, tmp_path):
    with pytest.raises(FileNotFoundError, match="did you mean 'shapes'"):
        recipes.load("shape")
    with pytest.raises(ValueError, match="abuot: found in the recipe"):
        recipes.load(file("abuot: x\nstages: []\n"))
    with pytest.raises(ValueError, match="stages: found None"):
        recipes.load(file("config: {}\n"))
