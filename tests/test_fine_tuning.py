"""Fine-tuning of whole backbones through `tfbp.fit`: head first, then the last block; and LoRA."""

import json
import pathlib
import re

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfbp
from tfbp.modeling import paths

CLASSES = ("ant", "bee")
RATE = 1e-3


PIXELS = np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3), dtype=np.uint8)


def splits():
    """Returns 8, 4 and 4 examples: whole batches of one size, since tracing is what takes long."""
    labels = np.arange(16) % 2
    return tfbp.Splits.from_arrays(PIXELS, labels, classes=CLASSES, validation=0.25, test=0.25)


def swapped(architecture):
    """Returns a backbone with a random start and a new head."""
    keras.utils.set_random_seed(0)
    build = getattr(keras.applications, architecture)
    backbone = build(include_top=False, weights=None, input_shape=(32, 32, 3))
    model = tfbp.swap_head(backbone, CLASSES)
    # One scale for each normalization, as He's start has for each kernel: with the statistics of
    # the start, zero and one, what comes out of MobileNetV3 is 1e-10, too small to learn from.
    norms = [each for each in backbone.layers if isinstance(each, keras.layers.BatchNormalization)]
    momentum = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    model(PIXELS.astype(np.float32), training=True)
    for norm, value in zip(norms, momentum, strict=True):
        power = np.mean(norm.moving_variance.numpy() + norm.moving_mean.numpy() ** 2)
        norm.moving_variance.assign(np.full(norm.moving_variance.shape, power))
        norm.moving_mean.assign(np.zeros(norm.moving_mean.shape))
        norm.momentum = value
    return model


def fit(model, phases, **settings):
    task = tfbp.Classification(CLASSES)
    return tfbp.fit(model, splits(), task, phases, tfbp.Settings(batch_size=4, **settings))


def values(model):
    return {
        f"{path}/{variable.name}": variable.numpy()
        for path, layer in paths.with_weights(model).items()
        for variable in layer.weights
    }


def changed(model, before):
    return {name for name, value in values(model).items() if (value != before[name]).any()}


def published(run, folder):
    """Exports, and returns what parity says and the number of values in the export's variables."""
    version = pathlib.Path(run.export(str(folder)))
    parity = json.loads((version / "assets.extra" / "tfbp.json").read_text())["parity"]
    variables = tf.train.list_variables(str(version / "variables" / "variables"))
    shapes = [shape for name, shape in variables if name.startswith("saved_variables/")]
    return parity, sum(int(np.prod(shape)) for shape in shapes)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "last", "batch_norm"),
    [
        ("VGG16", r"vgg16/block5_conv\d", "frozen"),
        ("MobileNetV3Small", r"MobileNetV3Small/(expanded_conv_10_.*|conv_1.*)", "frozen"),
        ("ResNet50V2", r"resnet50v2/(conv5_block3_.*|post_bn)", "affine"),
        ("EfficientNetV2B0", r"efficientnetv2-b0/(block6h_.*|top_.*)", "affine"),
        ("ConvNeXtTiny", r"convnext_tiny/(.*_stage_3_block_2_.*|layer_normalization)", "frozen"),
    ],
)
def test_a_backbone_learns_in_two_phases_and_is_exported(tmp_path, architecture, last, batch_norm):
    model = swapped(architecture)
    before = values(model)

    run = fit(
        model,
        [
            tfbp.Phase("head", "head", epochs=1, learning_rate=RATE),
            tfbp.Phase("tune", f"{last}|head", epochs=1, learning_rate=RATE, batch_norm=batch_norm),
        ],
        allow=("random-frozen",),
    )

    def expected(name):
        path, _, variable = name.rpartition("/")
        if not re.fullmatch(f"{last}|head", path):
            return False
        norm = "moving_mean" in variable or f"{path}/moving_mean" in before
        affine = batch_norm == "affine" and variable in ("gamma", "beta")
        return not norm or affine

    assert changed(model, before) == {name for name in before if expected(name)}
    head, tune = run.result["phases"]
    assert head["proof"]["trained_layers"] == 1
    assert tune["proof"]["trained_layers"] == len(tune["trained"]) > 2
    parity, exported = published(run, tmp_path)
    assert parity["difference"] <= 1e-5
    assert exported == model.count_params()


@pytest.mark.slow
def test_lora_trains_a_small_part_of_vgg16_and_exports_a_plain_model(tmp_path):
    model = swapped("VGG16")
    plain = model.count_params()
    tfbp.add_lora(model, "vgg16/.*", rank=4)
    before = values(model)

    phase = tfbp.Phase("adapt", "vgg16/.*|head", epochs=1, learning_rate=RATE)
    run = fit(model, [phase], allow=("random-frozen",))

    (record,) = run.result["phases"]
    assert record["parameters"] < 0.02 * model.count_params()
    learnt = {name for name in before if "/lora_" in name or name.startswith("head/")}
    assert len(learnt) == 2 * 13 + 2
    assert changed(model, before) == learnt
    assert record["proof"]["trained_layers"] == 13 + 1
    parity, exported = published(run, tmp_path)
    assert parity["difference"] <= 1e-5
    assert exported == plain
    assert model.count_params() > plain


def test_a_run_with_adapters_is_read_back(tmp_path):
    def adapted():
        keras.utils.set_random_seed(0)
        images = keras.Input((32, 32, 3))
        x = keras.layers.Rescaling(1 / 255)(images)
        x = keras.layers.Conv2D(4, 3, 4, activation="relu", name="body")(x)
        x = keras.layers.GlobalAveragePooling2D()(x)
        model = keras.Model(images, keras.layers.Dense(2, name="head")(x))
        return tfbp.add_lora(model, "body", rank=1, biases=True)

    phase = tfbp.Phase("adapt", "body|head", epochs=2, learning_rate=0.05)
    settings = {"workdir": str(tmp_path), "allow": ("random-frozen",)}
    first = fit(adapted(), [phase], **settings)
    assert [len(first.history), first.result["phases"][0]["parameters"]] == [2, 27 + 4 + 4 + 10]

    again = fit(adapted(), [phase], **settings)

    pixels, _ = first.splits.test.read(np.arange(2))
    np.testing.assert_allclose(again.model(pixels), first.model(pixels), rtol=1e-5, atol=1e-6)
    saved = keras.models.load_model(tmp_path / "model.keras", compile=False)
    np.testing.assert_allclose(saved(pixels), first.model(pixels), rtol=1e-5, atol=1e-6)
    assert not any("lora" in variable.name for variable in saved.variables)
