"""Half precision: what must stay float32 does, and training works."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from kmrcnn.engine.step import build_detect_step, build_eval_step, build_train_step
from kmrcnn.layers import BatchNorm, FrozenBatchNorm, GroupNorm
from kmrcnn.layers.frames import BoxLayer
from kmrcnn.losses.base import LossLayer
from kmrcnn.models import build_inference_model, build_training_model
from tests.agreement.losses import initialise
from tests.models.test_mask_rcnn_graph import training_batch
from tests.ops.modes import run
from tests.tiny import TinyConfig

HALF = {"mixed_bfloat16": "bfloat16", "mixed_float16": "float16"}


@pytest.fixture(params=HALF)
def policy(request):
    yield from _under(request.param)


# JAX compiles a whole network for a quarter of a minute: the second format is for long runs.
@pytest.fixture(params=["mixed_bfloat16", pytest.param("mixed_float16", marks=pytest.mark.long)])
def training_policy(request):
    yield from _under(request.param)


def _under(policy: str):
    keras.config.set_dtype_policy(policy)
    yield policy
    keras.config.set_dtype_policy("float32")


def _layers(model: keras.Model) -> list[keras.layers.Layer]:
    nested = (_layers(layer) if isinstance(layer, keras.Model) else [layer] for layer in model.layers)
    return [layer for group in nested for layer in group]


def _config(**settings) -> TinyConfig:
    config = TinyConfig()
    config.APPEND_GT_TO_ROIS, config.LOSS_DENOMINATOR = True, "fixed"
    for name, value in settings.items():
        setattr(config, name, value)
    return config


@pytest.mark.parametrize("settings", [{}, {"RPN_SCORES": "sigmoid", "FPN_NORM": "gn", "FPN_UPSAMPLING": "bilinear"}],
                         ids=["softmax", "sigmoid"])
@pytest.mark.parametrize("build", [build_training_model, build_inference_model])
def test_network_computes_in_half_precision_and_boxes_scores_and_losses_in_float32(policy, build, settings):
    config = _config(**settings)
    config.FPN_NORM, config.GN_GROUPS = settings.get("FPN_NORM"), 4
    model = build(config)
    assert {variable.dtype for variable in model.variables} == {"float32"}
    assert {tensor.dtype for tensor in model.output.values()} == {"float32"}
    layers = _layers(model)
    exact = [layer for layer in layers if isinstance(layer, BoxLayer | LossLayer | keras.layers.Softmax)
             or layer.name in ("mrcnn_mask_probs", "rpn_class_xxx", "mrcnn_class", "mrcnn_bbox")]
    assert len(exact) > 8 and {layer.compute_dtype for layer in exact} == {"float32"}
    heavy = [layer for layer in layers if layer.weights]
    assert len(heavy) > 20 and {layer.compute_dtype for layer in heavy} == {HALF[policy]}


@pytest.mark.parametrize("make", [lambda: BatchNorm(train_bn=True, epsilon=1e-3), lambda: BatchNorm(train_bn=False),
                                  lambda: FrozenBatchNorm(), lambda: GroupNorm(groups=1, epsilon=1e-5)],
                         ids=["trained", "fixed", "frozen", "group"])
def test_normalisation_statistics_have_full_precision(policy, make):
    """The squares of these activations are beyond float16, and their spread is lost in sums of half precision."""
    layer, rng = make(), np.random.default_rng(0)
    x = rng.normal(500, 20, (2, 16, 16, 8)).astype("float32")
    x = run(lambda x: keras.ops.cast(keras.ops.cast(x, HALF[policy]), "float32"), x)
    layer.build(x.shape)
    if isinstance(layer, BatchNorm):
        layer.set_weights([np.full(8, 1.5), np.full(8, 0.25), np.full(8, 500.0), np.full(8, 400.0)])
    axes = (1, 2, 3) if isinstance(layer, GroupNorm) else (0, 1, 2)
    mean, variance, gamma, beta = x.mean(axes, keepdims=True), x.var(axes, keepdims=True), 1.5, 0.25
    if isinstance(layer, GroupNorm):
        gamma, beta = 1.0, 0.0
    elif not layer.train_bn:
        mean, variance = 500.0, 400.0
    wanted = (x - mean) / np.sqrt(variance + layer.epsilon) * gamma + beta
    found = keras.ops.convert_to_numpy(layer(keras.ops.cast(x, HALF[policy]), training=True))
    assert str(found.dtype) == HALF[policy]
    np.testing.assert_allclose(found.astype("float32"), wanted, atol=0.04 if policy == "mixed_bfloat16" else 0.006)
    if isinstance(layer, BatchNorm) and layer.train_bn:
        moved = [0.99 * 500 + 0.01 * mean.ravel(), 0.99 * 400 + 0.01 * variance.ravel()]
        for statistic, value in zip(layer.get_weights()[2:], moved, strict=True):
            np.testing.assert_allclose(statistic, value, rtol=1e-4)


class Trained:
    """A network after ten steps on one batch."""

    def __init__(self, config: TinyConfig, batch: dict):
        self.model = build_training_model(config)
        initialise(self.model)
        self.optimizer = keras.optimizers.SGD(5e-3, momentum=0.9, global_clipnorm=5.0)
        step = build_train_step(self.model, self.optimizer, {}, 1e-4, "sum")
        self.scalars = [step(batch) for _ in range(10)]
        step.close()


def test_training_and_detection(training_policy):
    config = _config()
    batch = training_batch(config)
    batch["input_image"] /= 50
    trained = Trained(config, batch)
    assert {keras.backend.standardize_dtype(value.dtype) for value in trained.scalars[0].values()} == {"float32"}
    assert {v.dtype for v in trained.optimizer.variables if "int" not in v.dtype} == {"float32"}
    losses = [float(scalars["loss"]) for scalars in trained.scalars]
    assert np.isfinite(losses).all() and losses[-1] < 0.97 * losses[0]
    assert all(np.isfinite(weight).all() for weight in trained.model.get_weights())

    detector = build_inference_model(config)
    for layer in detector.layers:
        if layer.weights:
            layer.set_weights(trained.model.get_layer(layer.name).get_weights())
    results = build_detect_step(detector, lambda outputs: outputs)(batch)
    for name, value in results.items():
        value = keras.ops.convert_to_numpy(value)
        assert value.dtype == np.float32 and np.isfinite(value).all(), name

    keras.config.set_dtype_policy("float32")
    exact = build_training_model(config)
    initialise(exact)
    wanted = {name: float(value) for name, value in build_eval_step(exact, {}, 1e-4, "sum")(batch).items()}
    found = {name: float(value) for name, value in trained.scalars[0].items()}
    # Eight bits of mantissa in bfloat16, eleven in float16.
    tolerance = 0.01 if training_policy == "mixed_bfloat16" else 0.002
    assert found == pytest.approx(wanted, rel=tolerance, abs=tolerance)
