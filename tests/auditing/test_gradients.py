"""Layers that are said to train and cannot, found by one batch."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfbp
from tfbp.auditing import gradients, one_batch
from tfbp.modeling import adapters, freezing

GENERATOR = np.random.default_rng(0)
X = GENERATOR.normal(size=(40, 4)).astype("float32")
SPLITS = tfbp.Splits.from_arrays(X, np.arange(40) % 2, classes=("a", "b"))
TASK = tfbp.Classification(SPLITS.classes)
ALL = tfbp.Phase("all", ".*", epochs=1, learning_rate=0.1)


def network(*between, **head):
    inputs = keras.Input((4,))
    x = keras.layers.Dense(8, activation="tanh", name="first")(inputs)
    for layer in between:
        x = layer(x)
    return keras.Model(inputs, keras.layers.Dense(2, name="head", **head)(x))


def found(model, phase=ALL, splits=SPLITS, task=TASK):
    with one_batch.untouched(model):
        frozen = freezing.freeze(model, phase.trainable, phase.batch_norm)
        return list(gradients.findings(phase, one_batch.run(model, splits, task, frozen)))


def test_a_network_that_learns_passes():
    assert not found(network(keras.layers.Dropout(0.5), keras.layers.Dense(8, "relu")))


def test_variables_that_no_gradient_reaches_are_named():
    (finding,) = found(network(keras.layers.Lambda(lambda x: tf.cast(x > 0, x.dtype))))
    assert finding.id == "no-gradient" and not finding.warning
    assert "'all'" in finding.message and "first/kernel, first/bias" in finding.message
    assert "head" not in finding.message
    assert not found(network(keras.layers.Lambda(lambda x: tf.sigmoid(100 * x))))


def test_a_layer_whose_units_are_all_dead_is_named():
    model = network(keras.layers.Dense(8, "relu", name="dead"))
    model.get_layer("dead").bias.assign(tf.fill([8], -1e3))
    (finding,) = found(model)
    assert finding.id == "dead-layer" and not finding.warning
    assert "first, dead" in finding.message
    model.get_layer("dead").bias.assign(tf.zeros([8]))
    assert not found(model)


def test_a_network_of_zeros_can_not_learn():
    model = network(keras.layers.Dense(8, "relu", kernel_initializer="zeros", name="zeros"))
    (finding,) = found(model)
    assert finding.id == "dead-layer" and "first, zeros" in finding.message


def test_before_a_head_that_starts_at_zero_a_layer_is_not_dead():
    assert not found(network(kernel_initializer="zeros"))


def test_before_two_layers_of_zeros_it_is():
    model = network(keras.layers.Dense(8, kernel_initializer="zeros"), kernel_initializer="zeros")
    assert [finding.id for finding in found(model)] == ["dead-layer"]


def test_adapters_are_not_dead_though_their_first_gradient_is_half_zero():
    model = network(keras.layers.Dense(8, name="adapted"))
    adapters.add_lora(model, "adapted", 1)
    adapt = tfbp.Phase("adapt", "adapted", epochs=1, learning_rate=0.1)
    assert not found(model, adapt)


def test_gradients_too_small_for_float16_are_not_taken_for_zero():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        # 1e-3 for each of two scalings, over 16 examples: under what float16 holds.
        small = keras.layers.Rescaling(1e-3), keras.layers.Rescaling(1e-3)
        assert not found(network(*small, dtype="float32"))
    finally:
        keras.config.set_dtype_policy(before)


def regression(scale):
    y = scale * X.sum(axis=1, keepdims=True)
    return tfbp.Splits.from_arrays(X, y), keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(1)]
    )


def test_targets_so_large_that_the_first_update_explodes_are_refused():
    splits, model = regression(1e7)
    (finding,) = found(model, splits=splits, task=tfbp.Regression())
    assert finding.id == "exploding" and not finding.warning
    assert "dense" in finding.message and "/kernel (" in finding.message
    clipped = tfbp.Phase("all", ".*", epochs=1, learning_rate=0.1, clip_norm=1.0)
    assert not found(model, clipped, splits, tfbp.Regression())
    splits, model = regression(1.0)
    assert not found(model, splits=splits, task=tfbp.Regression())


def test_a_loss_that_is_no_number_is_refused_clipped_or_not():
    clipped = tfbp.Phase("all", ".*", epochs=1, learning_rate=0.1, clip_norm=1.0)
    for phase in (ALL, clipped):
        (finding,) = found(network(keras.layers.Lambda(lambda x: tf.math.log(x - 2))), phase)
        assert finding.id == "exploding" and "the loss (nan)" in finding.message


def test_a_model_that_makes_its_own_gradients_is_left_to_the_proof():
    class Own(keras.Model):
        def train_step(self, data):
            raise AssertionError("nothing is trained")

    inputs = keras.Input((4,))
    constant = keras.layers.Lambda(tf.stop_gradient)(inputs)
    assert not found(Own(inputs, keras.layers.Dense(2, kernel_initializer="zeros")(constant)))


def test_several_devices_give_the_gradients_of_one():
    model = network()
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        other = network()
    other.set_weights(model.get_weights())
    norms = []
    for each in (model, other):
        with one_batch.untouched(each):
            frozen = freezing.freeze(each, "head")
            norms.append([norm for *_, norm in one_batch.run(each, SPLITS, TASK, frozen).norms])
    assert norms[1] == pytest.approx(norms[0], rel=1e-5)
    # The gradient of the mean cross-entropy at the bias is the mean of softmax - one-hot.
    picked = np.unique(np.linspace(0, SPLITS.train.size - 1, one_batch.EXAMPLES).astype(int))
    x, y = SPLITS.train.read(tf.constant(picked))
    error = np.mean(tf.nn.softmax(model(x)) - tf.one_hot(y, 2), axis=0)
    assert norms[0][1] == pytest.approx(np.linalg.norm(error), rel=1e-4)
