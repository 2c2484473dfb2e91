"""Foreign files into small models: what fits, what is said when it does not, and what can be asked for."""

from __future__ import annotations

import warnings

import h5py
import keras
import numpy as np
import pytest

from kmrcnn.importers import match_classes
from kmrcnn.importers.assign import WeightMismatchError
from kmrcnn.importers.load import load_into, save_model
from kmrcnn.importers.torch_file import read_torch_file, write_torch_file
from kmrcnn.importers.weight_file import UnknownFormatError

layers = keras.layers


def model(classes: int = 4, *, scores: int = 1, agnostic: bool = False, channels: int = 3, bias: bool = False,
          blocks: str = "a", mask: bool = True, seed: int = 0) -> keras.Model:
    """A network with one layer of every kind, under the names of the large ones."""
    keras.utils.set_random_seed(seed)
    image = keras.Input((16, 16, channels), name="input_image")
    x = layers.BatchNormalization(name="bn_conv1")(layers.Conv2D(4, 7, 4, use_bias=bias, name="conv1")(image))
    for block in blocks:
        x = layers.Conv2D(4, 3, padding="same", use_bias=bias, name=f"res2{block}_branch2b")(x)
        x = layers.BatchNormalization(name=f"bn2{block}_branch2b")(x)
    x = layers.Conv2D(4, 1, name="fpn_c2p2")(x)
    features = keras.Input((None, None, 4))
    shared = layers.Conv2D(4, 3, padding="same", name="rpn_conv_shared")(features)
    rpn = keras.Model(features, [layers.Conv2D(3 * scores, 1, name="rpn_class_raw")(shared),
                                 layers.Conv2D(12, 1, name="rpn_bbox_pred")(shared)], name="rpn_model")(x)
    roi = layers.Conv2D(5, 3, padding="valid", name="mrcnn_class_conv1")(x)
    flat = layers.Flatten()(layers.Conv2D(5, 1, name="mrcnn_class_conv2")(roi))
    outputs = [*rpn, layers.Dense(classes, name="mrcnn_class_logits")(flat),
               layers.Dense(4 if agnostic else 4 * classes, name="mrcnn_bbox_fc")(flat)]
    if mask:
        x = layers.Conv2D(4, 3, padding="same", name="mrcnn_mask_conv1")(x)
        x = layers.Conv2DTranspose(4, 2, 2, name="mrcnn_mask_deconv")(x)
        outputs.append(layers.Conv2D(classes, 1, name="mrcnn_mask")(x))
    return keras.Model(image, outputs)


def names(prefix: str = "") -> dict[str, tuple[int, ...]]:
    """What torchvision would call the arrays of `model()`, and their shapes there."""
    norm = {"weight": (4,), "bias": (4,), "running_mean": (4,), "running_var": (4,)}
    shapes = {"backbone.body.conv1.weight": (4, 3, 7, 7), "backbone.body.layer1.0.conv2.weight": (4, 4, 3, 3)}
    shapes |= {f"backbone.body.{layer}.{kind}": size
               for layer in ("bn1", "layer1.0.bn2") for kind, size in norm.items()}
    for layer, kernel in {"backbone.fpn.inner_blocks.0.0": (4, 4, 1, 1), "rpn.head.conv.0.0": (4, 4, 3, 3),
                          "rpn.head.cls_logits": (3, 4, 1, 1), "rpn.head.bbox_pred": (12, 4, 1, 1),
                          "roi_heads.box_head.fc6": (5, 36), "roi_heads.box_head.fc7": (5, 5),
                          "roi_heads.box_predictor.cls_score": (4, 5), "roi_heads.box_predictor.bbox_pred": (16, 5),
                          "roi_heads.mask_head.0.0": (4, 4, 3, 3),
                          "roi_heads.mask_predictor.conv5_mask": (4, 4, 2, 2),
                          "roi_heads.mask_predictor.mask_fcn_logits": (4, 4, 1, 1)}.items():
        shapes |= {f"{layer}.weight": kernel, f"{layer}.bias": (kernel[0],)}
    return {prefix + name: shape for name, shape in shapes.items()}


def arrays(prefix: str = "") -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in names(prefix).items()}


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "weights.pth"
    write_torch_file(file, arrays())
    return file


def weight(network: keras.Model, layer: str, name: str = "kernel") -> np.ndarray:
    found = network.get_layer("rpn_model") if layer.startswith("rpn") else network
    return np.asarray({v.path.split("/")[-1]: keras.ops.convert_to_numpy(v)
                       for v in found.get_layer(layer).weights}[name])


def assert_unchanged(network: keras.Model, **kind) -> None:
    for found, wanted in zip(network.get_weights(), model(**kind).get_weights(), strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_a_torchvision_file_fills_the_model_and_is_written_back_exactly(path, tmp_path):
    network, theirs = model(), arrays()
    report = load_into(network, path)
    assert not (report.missing or report.unexpected or report.mismatched or report.excluded or report.ignored)
    assert len(report.loaded) == len(theirs) == len(network.weights)
    for out in range(4):
        np.testing.assert_array_equal(weight(network, "conv1")[..., out],
                                      theirs["backbone.body.conv1.weight"][out].transpose(1, 2, 0))
    np.testing.assert_array_equal(weight(network, "bn_conv1", "moving_variance"),
                                  theirs["backbone.body.bn1.running_var"])
    np.testing.assert_array_equal(weight(network, "mrcnn_class_conv1")[2, 1, 3],
                                  theirs["roi_heads.box_head.fc6.weight"][:, 3 * 9 + 2 * 3 + 1])
    np.testing.assert_array_equal(weight(network, "rpn_bbox_pred", "bias")[4:8],
                                  theirs["rpn.head.bbox_pred.bias"][[5, 4, 7, 6]])
    save_model(network, tmp_path / "again.pth")
    again = read_torch_file(tmp_path / "again.pth")
    assert set(again) == set(theirs)
    for name, array in theirs.items():
        np.testing.assert_array_equal(again[name], array)


def test_round_trip_through_h5_and_pth(path, tmp_path):
    first, second, third = model(seed=1), model(seed=2), model(seed=3)
    load_into(first, path)
    save_model(first, tmp_path / "a.h5")
    load_into(second, tmp_path / "a.h5")
    save_model(second, tmp_path / "b.pth")
    load_into(third, tmp_path / "b.pth")
    for found, wanted in zip(third.get_weights(), first.get_weights(), strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("wrap", [lambda a: a, lambda a: {"model": a, "optimizer": {"state": {}}, "epoch": 3},
                                  lambda a: {"state_dict": {f"module.{k}": v for k, v in a.items()}},
                                  lambda a: {f"module.module.{k}": v for k, v in a.items()},
                                  lambda a: {"ema": a, "map": 0.39, "epoch": 23}])
def test_bare_and_wrapped_weights(wrap):
    from kmrcnn.importers.weight_file import open_envelope

    file = open_envelope(wrap(arrays()))
    assert set(file.tensors) == set(names())
    assert set(file.extras) <= {"optimizer", "epoch", "map"}


def test_unknown_names_are_said_with_the_known_formats(tmp_path):
    write_torch_file(tmp_path / "else.pth", {"encoder.weight": np.zeros(3, np.float32)})
    with pytest.raises(UnknownFormatError, match=r"else\.pth.*encoder\.weight.*Known: matterport_file.*liangheming"):
        load_into(model(), tmp_path / "else.pth")


def test_renamed_and_wrong_arrays_are_named(tmp_path):
    renamed, wrong, network = arrays(), arrays(), model()
    renamed["rpn.head.convolution.weight"] = renamed.pop("rpn.head.conv.0.0.weight")
    write_torch_file(tmp_path / "renamed.pth", renamed)
    with pytest.raises(WeightMismatchError, match="lacks rpn_conv_shared/kernel") as error:
        load_into(network, tmp_path / "renamed.pth")
    assert error.value.report.unexpected == ("rpn.head.convolution.weight",)
    report = load_into(model(), tmp_path / "renamed.pth", by_name=True)
    assert report.missing == ("rpn_conv_shared/kernel",)
    wrong["backbone.fpn.inner_blocks.0.0.weight"] = np.zeros((4, 4, 3, 3), np.float32)
    wrong["rpn.head.bbox_pred.bias"] = np.zeros((2, 2, 3), np.float32)
    wrong["roi_heads.box_head.fc7.weight"] = np.zeros(7, np.float32)
    write_torch_file(tmp_path / "wrong.pth", wrong)
    with pytest.raises(WeightMismatchError, match=r"fpn_c2p2/kernel: model \(1, 1, 4, 4\), file \(3, 3") as error:
        load_into(network, tmp_path / "wrong.pth", by_name=True)
    assert len(error.value.report.mismatched) == 3
    assert_unchanged(network)


def test_what_the_model_has_no_place_for_is_named_as_in_the_file(path):
    with pytest.raises(WeightMismatchError, match=r"no place for roi_heads\.mask_head\.0\.0\.weight \(mrcnn_mask"):
        load_into(model(mask=False), path)
    assert len(load_into(model(mask=False), path, by_name=True).unexpected) == 6


def test_a_file_without_masks_leaves_them_on_request(tmp_path):
    write_torch_file(tmp_path / "boxes.pth", {name: array for name, array in arrays().items() if "mask" not in name})
    with pytest.raises(WeightMismatchError, match="lacks mrcnn_mask_conv1/kernel"):
        load_into(model(), tmp_path / "boxes.pth")
    assert len(load_into(model(), tmp_path / "boxes.pth", by_name=True).missing) == 6


def test_other_class_counts(path):
    network = model(classes=3)
    with pytest.raises(WeightMismatchError, match='trained for 4 classes, this model has 3.*exclude="heads"'):
        load_into(network, path)
    assert_unchanged(network, classes=3)
    report = load_into(network, path, exclude="heads")
    assert set(report.excluded) == {f"{layer}/{kind}" for layer in ("mrcnn_class_logits", "mrcnn_bbox_fc", "mrcnn_mask")
                                    for kind in ("kernel", "bias")}
    assert not report.missing and not report.unexpected


def test_classes_of_the_same_name_keep_their_rows(path):
    theirs, fresh, network = arrays(), model(classes=3), model(classes=3)
    kept = match_classes(["BG", "Dog", "lizard"], ["__background__", "cat", "person", "dog "])
    assert kept == [0, 3, None]
    load_into(network, path, classes=kept)
    for out, row in enumerate(kept):
        score, mask = (theirs[f"roi_heads.{name}.weight"] for name in ("box_predictor.cls_score",
                                                                       "mask_predictor.mask_fcn_logits"))
        for layer, kernel in (("mrcnn_class_logits", score), ("mrcnn_mask", mask[:, :, 0, 0])):
            wanted = weight(fresh, layer)[..., out] if row is None else kernel[row]
            np.testing.assert_array_equal(weight(network, layer)[..., out], wanted.reshape(
                weight(network, layer)[..., out].shape))
        deltas = theirs["roi_heads.box_predictor.bbox_pred.bias"].reshape(4, 4)[:, [1, 0, 3, 2]]
        np.testing.assert_array_equal(weight(network, "mrcnn_bbox_fc", "bias")[4 * out: 4 * out + 4],
                                      np.zeros(4) if row is None else deltas[row])


@pytest.mark.parametrize(("classes", "message"), [([0, 1], "2 entries, the model has 3"),
                                                  ([0, 1, 4], "class 4, the file has classes 0 to 3"),
                                                  ([0, -1, 1], "class -1")])
def test_wrong_choices_of_classes(path, classes, message):
    network = model(classes=3)
    with pytest.raises(ValueError, match=message):
        load_into(network, path, classes=classes)
    assert_unchanged(network, classes=3)


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_other_input_channels(path, channels):
    theirs, network = arrays()["backbone.body.conv1.weight"], model(channels=channels)
    if channels != 3:
        with pytest.raises(WeightMismatchError, match=f"3 channels, this model for {channels}: inflate_input=True"):
            load_into(network, path)
    load_into(network, path, inflate=True)
    kernel = weight(network, "conv1")
    np.testing.assert_allclose(kernel.sum(2), theirs.sum(1).transpose(1, 2, 0), rtol=1e-5, atol=1e-6)
    if channels == 5:
        red, green, blue = theirs.transpose(1, 2, 3, 0)
        np.testing.assert_allclose(kernel.transpose(2, 0, 1, 3), [red / 2, green / 2, blue, red / 2, green / 2])


def test_the_other_kind_of_rpn_and_of_boxes_is_said_in_words(path):
    with pytest.raises(WeightMismatchError, match='one sigmoid score an anchor.*RPN_SCORES = "sigmoid"'):
        load_into(model(scores=2), path)
    with pytest.raises(WeightMismatchError, match="this model are class-agnostic.*CLASS_AGNOSTIC_BOXES = False"):
        load_into(model(agnostic=True), path)


def test_two_softmax_logits_for_a_sigmoid_model(tmp_path):
    save_model(model(scores=2), tmp_path / "softmax.h5")
    with pytest.raises(WeightMismatchError, match='two softmax logits an anchor.*RPN_SCORES = "softmax"'):
        load_into(model(), tmp_path / "softmax.h5")


def test_background_and_object_deltas_for_a_class_agnostic_model(tmp_path):
    theirs = {name: array[:{"cls_score": 2, "bbox_pred": 8, "fcn_logits": 2}.get(
        next((part for part in ("cls_score", "bbox_pred", "fcn_logits") if part in name and "rpn" not in name), ""),
        len(array))] for name, array in arrays().items()}
    write_torch_file(tmp_path / "one_class.pth", theirs)
    network = model(classes=2, agnostic=True)
    load_into(network, tmp_path / "one_class.pth")
    np.testing.assert_array_equal(weight(network, "mrcnn_bbox_fc", "bias"),
                                  theirs["roi_heads.box_predictor.bbox_pred.bias"][[5, 4, 7, 6]])


def test_another_preset_than_the_files_warns(path, tmp_path):
    with pytest.warns(UserWarning, match=r"weights\.pth.*torchvision_file.*PRESET = 'torchvision', the model has 'mat"):
        load_into(model(), path, preset="matterport")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        load_into(model(), path, preset="torchvision")
        save_model(model(), tmp_path / "own.h5", preset="torchvision")
        load_into(model(), tmp_path / "own.h5", preset="torchvision")
    with pytest.warns(UserWarning, match="PRESET = 'torchvision', the model has 'detectron'"):
        load_into(model(), tmp_path / "own.h5", preset="detectron")
    with pytest.raises(WeightMismatchError, match="lacks conv1/bias.*for PRESET = 'torchvision'"):
        load_into(model(bias=True), path, preset="matterport")
    with h5py.File(tmp_path / "own.h5") as file:
        assert file.attrs["preset"] == "torchvision"


def test_a_backbone_alone_leaves_the_rest(tmp_path):
    body = {name.removeprefix("backbone.body."): array for name, array in arrays().items() if "body" in name}
    body |= {"fc.weight": np.zeros((9, 4), np.float32), "fc.bias": np.zeros(9, np.float32),
             "bn1.num_batches_tracked": np.zeros((), np.int64)}
    write_torch_file(tmp_path / "imagenet.pth", body)
    network = model()
    report = load_into(network, tmp_path / "imagenet.pth")
    assert len(report.loaded) == 10 and not report.unexpected
    assert set(report.ignored) == {"fc.weight", "fc.bias", "bn1.num_batches_tracked"}
    np.testing.assert_array_equal(weight(network, "mrcnn_mask"), weight(model(), "mrcnn_mask"))
    with pytest.warns(UserWarning, match="another backbone: 1 of this one's convolutions.*res2b_branch2b/kernel"):
        load_into(model(blocks="ab"), tmp_path / "imagenet.pth")


def test_flip_input_can_be_chosen(path):
    network = model()
    load_into(network, path, flip_input=True)
    np.testing.assert_array_equal(weight(network, "conv1"),
                                  arrays()["backbone.body.conv1.weight"].transpose(2, 3, 1, 0)[:, :, ::-1])


@pytest.mark.parametrize(("kind", "message"), [({"bias": True}, "no place for conv1/bias"),
                                               ({"scores": 2}, "one sigmoid score"),
                                               ({"agnostic": True}, "class-specific")])
def test_networks_that_torchvision_does_not_have_are_not_written_for_it(tmp_path, kind, message):
    with pytest.raises(ValueError, match=message):
        save_model(model(**kind), tmp_path / "model.pth")
    assert list(tmp_path.iterdir()) == []
