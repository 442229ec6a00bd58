"""Exports of deep networks: how far rounding goes is measured, and faults are refused."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfbp.data.examples import Examples
from tfbp.exporting import parity, reference, savedmodel, versions
from tfbp.modeling import heads
from tfbp.tasks.classification import Classification
from tfbp.tasks.task import Signature

pytestmark = pytest.mark.slow

SIZE = 96
TASK = Classification(("ant", "bee", "cat"))


def pictures(size):
    """Coarse blocks of colour with some noise: not so alike that a network answers all the same."""
    generator = np.random.default_rng(0)
    blocks = generator.integers(0, 256, (40, 4, 4, 3)).repeat(size // 4, 1).repeat(size // 4, 2)
    x = np.clip(blocks + generator.integers(-20, 20, blocks.shape), 0, 255).astype(np.uint8)
    return Examples.from_arrays(x, np.arange(40) % 3)


@pytest.fixture(scope="module")
def network():
    """A classifier on random weights, whose statistics are fitted, and its examples."""
    keras.utils.set_random_seed(0)
    backbone = keras.applications.MobileNetV2(
        weights=None, include_top=False, input_shape=(SIZE, SIZE, 3)
    )
    for layer in backbone.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.5
    model, examples = heads.swap_head(backbone, 3), pictures(SIZE)
    x, _ = examples.read(tf.range(32))
    for _ in range(6):
        model(x, training=True)
    return model, examples


def pixels(function):
    """A signature `serving_default` of a function of images, without files and resizing."""
    specs = {"image": tf.TensorSpec([None, None, None, 3], tf.float32)}
    return {"serving_default": Signature(lambda image: {"y": function(image)}, specs, lambda n: {})}


def test_rounding_is_measured_and_faults_beyond_it_are_refused(network, tmp_path):
    model, examples = network
    x, _ = examples.read(tf.range(32))
    requests = [{"serving_default": {"image": x[:count].numpy()}} for count in (1, 3, 32)]
    call = pixels(lambda image: model(image, training=False))
    own = reference.answers(call, requests)
    tolerance = parity.tolerance(own.rounding)
    assert 0 < own.rounding < 1e-4 and 1e-5 <= tolerance < 5e-4

    def tried(function, name):
        savedmodel.write(model, pixels(function), tmp_path / name)
        return parity.this_process(tmp_path / name, requests)

    with parity.answered_by(lambda *_: tried(lambda image: model(image, training=False), "same")):
        assert parity.check("export", requests, own, tolerance)["difference"] <= tolerance
    faults = {
        "swapped channel": lambda image: model(image[..., ::-1], training=False),
        "no preprocessing": lambda image: model(image * 127.5 + 127.5, training=False),
    }
    for name, fault in faults.items():
        with (
            parity.answered_by(lambda *_, fault=fault, name=name: tried(fault, name)),
            pytest.raises(parity.ParityError, match="`y` of `serving_default` like the model"),
        ):
            parity.check("export", requests, own, tolerance)


def test_one_kernel_that_is_off_by_a_hundredth_is_named(network, tmp_path):
    model, _ = network
    savedmodel.write(model, pixels(lambda image: model(image, training=False)), tmp_path)
    due = versions.fingerprints(model)
    parity.check_variables(tmp_path, due)
    kernel = next(each for each in model.weights if each.path.endswith("/kernel"))
    before = kernel.numpy()
    kernel.assign(kernel * 1.01)
    changed = versions.fingerprints(model)
    kernel.assign(before)
    with pytest.raises(parity.ParityError, match=f"bit for bit.* not hold {kernel.path}"):
        parity.check_variables(tmp_path, changed)
    assert len(due) == len(model.weights)
