"""The chain rule written by hand, held against the tape and against finite differences."""

import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfbp
from tfbp import driver, recipe

ONE = tf.distribute.get_strategy()

RECIPES = pathlib.Path(__file__).parents[2] / "recipes"
BACKPROP, MLP = recipe.load("backprop", RECIPES), recipe.load("mlp", RECIPES)
ACTIVATIONS = ["sigmoid", "tanh", "relu"]
SMALL = {"data": "random?shape=6&classes=3&count=40", "layers": (6, 5, 4, 3)}


def batch(dtype="float32"):
    generator = np.random.default_rng(3)
    x = tf.constant(generator.normal(size=(8, 6)), dtype)
    y = tf.constant(generator.integers(0, 3, 8))
    return x, y, tf.constant(generator.uniform(0.5, 2, 8), dtype)


def network(activation, dtype="float32"):
    previous = keras.config.dtype_policy()
    keras.config.set_dtype_policy(dtype)
    try:
        keras.utils.set_random_seed(0)
        config = BACKPROP.Config(activation=activation, **SMALL)
        model = BACKPROP.model(config, BACKPROP.data(config))
        # Biases of zero would put the units behind a dead layer exactly at the kink of the ReLU.
        model.set_weights([weight + 0.1 * (weight.ndim == 1) for weight in model.get_weights()])
        return model
    finally:
        keras.config.set_dtype_policy(previous)


class Path(keras.callbacks.Callback):
    """Keeps all weights after each epoch."""

    def __init__(self):
        super().__init__()
        self.weights = []

    def on_epoch_end(self, epoch, logs=None):
        self.weights.append(np.concatenate([weight.ravel() for weight in self.model.get_weights()]))


def mean_loss(model, x, y, weight):
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(y, model(x))
    return tf.reduce_mean(weight * losses)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_gradients_are_those_of_the_tape(activation):
    model, (x, y, weight) = network(activation), batch()

    logits, losses, ours = model.gradients(x, y, weight)

    with tf.GradientTape() as tape:
        loss = mean_loss(model, x, y, weight)
    expected = tape.gradient(loss, model.trainable_variables)
    largest = max(np.abs(gradient).max() for gradient in expected)
    for gradient, theirs in zip(ours, expected, strict=True):
        np.testing.assert_allclose(gradient, theirs, atol=1e-5 * largest)
    np.testing.assert_allclose(tf.reduce_mean(weight * losses), loss, rtol=1e-6)
    np.testing.assert_allclose(logits, model(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_gradients_are_central_finite_differences_in_float64(activation):
    model, (x, y, weight) = network(activation, "float64"), batch("float64")
    step = 1e-5

    _, _, ours = model.gradients(x, y, weight)

    for gradient, variable in zip(ours, model.trainable_variables, strict=True):
        start = np.asarray(variable)
        for place in np.ndindex(*start.shape):
            sides = []
            for sign in (1, -1):
                moved = start.copy()
                moved[place] += sign * step
                variable.assign(moved)
                sides.append(float(mean_loss(model, x, y, weight)))
            variable.assign(start)
            numeric = (sides[0] - sides[1]) / (2 * step)
            assert gradient.numpy()[place] == pytest.approx(numeric, abs=1e-6)


def test_it_equals_mlp_step_by_step_from_equal_weights():
    settings = SMALL | {"activation": "tanh", "learning_rate": 0.3, "epochs": 6, "batch_size": 7}
    runs = [driver.build(module, module.Config(**settings), ONE) for module in (BACKPROP, MLP)]
    runs[1].model.set_weights(runs[0].model.get_weights())
    paths = [Path(), Path()]

    for it, path in zip(runs, paths, strict=True):
        driver.fit(
            it.model, it.splits, it.task, it.phases, tfbp.Settings(batch_size=7), callbacks=[path]
        )

    assert len(paths[0].weights) == settings["epochs"]
    for ours, theirs in zip(*(path.weights for path in paths), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("module", "least"), [(BACKPROP, 0.95), (MLP, 0.96)])
def test_its_mean_accuracy_on_digits_over_five_seeds(module, least):
    accuracies = []
    for seed in range(5):
        it = driver.build(module, module.Config(seed=seed), ONE)
        run = driver.fit(it.model, it.splits, it.task, it.phases, tfbp.Settings(seed=seed))
        accuracies.append(run.result["metrics"]["test"]["accuracy"])

    assert np.mean(accuracies) >= least


def test_layers_that_do_not_take_the_examples_are_refused():
    with pytest.raises(recipe.UserError, match="`layers` must begin with the 6 values"):
        driver.build(BACKPROP, BACKPROP.Config(data=SMALL["data"], layers=(5, 3)), ONE)


def test_its_own_gradients_are_computed_in_full_precision_alone():
    with pytest.raises(recipe.UserError, match="`precision` must be one of the known values"):
        BACKPROP.Config(precision="mixed_float16")
