import keras
import numpy as np
import pytest
import tensorflow as tf

from tfbp.training import optimizer
from tfbp.training.phase import OPTIMIZERS, Phase

NUMBERS = np.random.default_rng(0)
START = [NUMBERS.normal(0, 1, shape).astype(np.float32) for shape in ((3, 2), (2,))]
GRADIENTS = [[NUMBERS.normal(0, 3, w.shape).astype(np.float32) for w in START] for _ in range(4)]


def apply(update, gradients=GRADIENTS):
    """Applies a list of gradients and returns the weights after each."""
    variables = [keras.Variable(weight) for weight in START]
    update.build(variables)
    found = []
    for each in gradients:
        update.apply_gradients(zip(map(tf.constant, each), variables, strict=True))
        found.append([variable.numpy() for variable in variables])
    return found


def build(steps=4, **settings):
    return optimizer.build(Phase("fit", ".*", epochs=1, **{"learning_rate": 0.1} | settings), steps)


def assert_close(ours, theirs, **tolerance):
    for one, other in zip(ours, theirs, strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_allclose(a, b, **{"rtol": 1e-6} | tolerance)


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_without_clipping_every_update_is_that_of_keras(name, weight_decay):
    ours = build(optimizer=name, weight_decay=weight_decay)
    if name == "adamw" and not weight_decay:
        name = "adam"
    keras_own = OPTIMIZERS[name](0.1, weight_decay=weight_decay or None)
    assert_close(apply(ours), apply(keras_own), rtol=0)


def test_weight_decay_shrinks_the_weights_by_the_rate_times_itself():
    still = [[0 * weight for weight in START]]
    found = apply(build(optimizer="sgd", weight_decay=0.3), still)
    assert_close(found, [[weight * (1 - 0.1 * 0.3) for weight in START]])


def test_clipping_is_by_the_norm_of_the_gradient_of_all_variables_together():
    weights, expected, clipped = [w.astype(np.float64) for w in START], [], 0
    gradients = [*GRADIENTS[:3], [g / 100 for g in GRADIENTS[3]]]
    found = apply(build(optimizer="sgd", clip_norm=2.0), gradients)
    for each in gradients:
        norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in each))
        clipped += norm > 2
        factor = min(1, 2 / norm)
        weights = [w - 0.1 * factor * g for w, g in zip(weights, each, strict=True)]
        expected.append(weights)
    assert clipped == 3
    assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_clipping_takes_the_sparse_gradient_of_an_embedding():
    table = keras.Variable(np.ones((5, 2), np.float32))
    update = build(optimizer="sgd", clip_norm=1.0, learning_rate=1.0)
    update.build([table])
    gradient = tf.IndexedSlices(tf.constant([[3.0, 0.0], [0.0, 4.0]]), tf.constant([1, 3]), [5, 2])
    update.apply_gradients([(gradient, table)])
    expected = np.ones((5, 2))
    expected[1, 0] -= 3 / 5
    expected[3, 1] -= 4 / 5
    np.testing.assert_allclose(table.numpy(), expected, rtol=1e-6)


def test_the_cosine_falls_from_the_rate_to_zero_over_the_phase():
    ones = [[np.ones_like(weight) for weight in START]] * 12
    found = apply(build(steps=10, optimizer="sgd", schedule="cosine"), ones)
    places = [START[1][0], *(step[1][0] for step in found)]
    rates = -np.diff(places)
    expected = 0.1 * (1 + np.cos(np.pi * np.minimum(np.arange(12), 10) / 10)) / 2
    np.testing.assert_allclose(rates, expected, atol=1e-6)
    assert rates[0] == pytest.approx(0.1, rel=1e-5)
    assert rates[10] == rates[11] == 0


def test_the_rate_and_the_count_of_steps_are_those_of_keras_rule():
    update = build(optimizer="sgd", learning_rate=0.5)
    apply(update)
    assert int(update.iterations) == 4
    assert float(update.learning_rate) == 0.5
    update.learning_rate = 0.25
    assert float(update.rule.learning_rate) == 0.25


def test_it_passes_through_its_configuration():
    update = build(optimizer="adam", schedule="cosine", clip_norm=2.0, weight_decay=0.1)
    again = optimizer.Update.from_config(update.get_config())
    assert_close(apply(again), apply(update), rtol=0)
