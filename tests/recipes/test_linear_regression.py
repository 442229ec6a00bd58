"""Gradient descent on a line, held against its closed form and against least squares."""

import dataclasses
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfbp
from tfbp import driver, recipe

ONE = tf.distribute.get_strategy()

MODULE = recipe.load("linear_regression", pathlib.Path(__file__).parents[2] / "recipes")


def descend(x, y, rate, steps):
    """Returns θ after each step of θ ← θ - rate · 2/n · Xᵀ(Xθ - y), from zero, in float64."""
    theta, path = np.zeros((x.shape[1], 1)), []
    for _ in range(steps):
        theta = theta - rate * 2 / len(x) * x.T @ (x @ theta - y)
        path.append(theta)
    return np.stack(path)


def design(it, bias):
    x, y = it.splits.train.read(tf.range(it.splits.train.size))
    columns = [x.numpy(), np.ones_like(x)] if bias else [x.numpy()]
    return np.concatenate(columns, axis=1).astype(np.float64), y.numpy().astype(np.float64)


class Path(keras.callbacks.Callback):
    """Keeps the parameters after each epoch, which is one step."""

    def __init__(self):
        super().__init__()
        self.steps = []

    def on_epoch_end(self, epoch, logs=None):
        self.steps.append([np.ravel(weight)[0] for weight in self.model.get_weights()])


@pytest.mark.parametrize("data", ["line", "proportional"])
@pytest.mark.parametrize("bias", [True, False])
def test_every_step_is_that_of_the_closed_form(data, bias):
    config = MODULE.Config(data=data, bias=bias, epochs=40)
    it = driver.build(MODULE, config, ONE)
    path = Path()

    driver.fit(
        it.model, it.splits, it.task, it.phases, tfbp.Settings(batch_size=100), callbacks=[path]
    )

    expected = descend(*design(it, bias), config.learning_rate, config.epochs)[..., 0]
    np.testing.assert_allclose(path.steps, expected, rtol=1e-5, atol=1e-5)


def test_on_proportional_data_the_slope_goes_to_one():
    it = driver.build(MODULE, MODULE.Config(data="proportional", bias=False, epochs=200), ONE)

    driver.fit(it.model, it.splits, it.task, it.phases, tfbp.Settings(batch_size=100))

    assert it.model.get_weights()[0].item() == pytest.approx(1.0, abs=1e-5)


@pytest.mark.slow
def test_the_default_run_reaches_least_squares():
    config = MODULE.Config()
    it = driver.build(MODULE, config, ONE)

    driver.fit(it.model, it.splits, it.task, it.phases, tfbp.Settings(batch_size=config.batch_size))

    best, *_ = np.linalg.lstsq(*design(it, bias=True), rcond=None)
    ours = np.concatenate([np.ravel(weight) for weight in it.model.get_weights()])
    np.testing.assert_allclose(ours, best[:, 0], atol=1e-3)
    assert config.epochs == 3000


@pytest.mark.parametrize("rule", ["adam", "adagrad", "rmsprop"])
def test_another_rule_takes_the_step_that_keras_takes(rule):
    config = MODULE.Config(optimizer=rule, epochs=5)
    it = driver.build(MODULE, config, ONE)
    x, y = it.splits.train.read(tf.range(it.splits.train.size))
    plain = keras.models.clone_model(keras.Sequential(it.model.layers))
    plain.compile(
        keras.optimizers.get({"class_name": rule, "config": {"learning_rate": 0.01}}), "mse"
    )
    plain.fit(x, y, batch_size=100, epochs=5, shuffle=False, verbose=0)

    driver.fit(it.model, it.splits, it.task, it.phases, tfbp.Settings(batch_size=100))

    for ours, theirs in zip(it.model.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_its_defaults_are_full_batches():
    config = MODULE.Config()

    assert MODULE.data(config).train.size <= config.batch_size
    assert dataclasses.asdict(config)["learning_rate"] == 0.01


def test_its_own_gradients_are_computed_in_full_precision_alone():
    with pytest.raises(recipe.UserError, match="`precision` must be one of the known values"):
        MODULE.Config(precision="mixed_bfloat16")
