import keras
import numpy as np
import pytest
import tensorflow as tf

from tfbp.gradients import through_time

NUMBERS = np.random.default_rng(0)
STEPS, FEATURES = 6, 3


def linear(factor=0.7):
    """Returns a linear recurrence h_t = x_t + h_{t-1} W, and W: `factor` times a rotation."""
    rotation, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(FEATURES, FEATURES)))
    x = keras.Input((STEPS, FEATURES))
    layer = keras.layers.SimpleRNN(FEATURES, activation=None, name="rnn")
    model = keras.Model(x, layer(x))
    weights = factor * rotation
    layer.set_weights([np.eye(FEATURES), weights, np.zeros(FEATURES)])
    return model, weights


def sequences(count=5):
    return NUMBERS.normal(0, 1, (count, STEPS, FEATURES)).astype(np.float32)


def test_the_norms_are_those_of_the_product_of_jacobians():
    model, weights = linear()
    x, y = sequences(), NUMBERS.normal(0, 1, (5, FEATURES)).astype(np.float32)
    found = through_time.norms(model, keras.losses.MeanSquaredError())(x, y)["rnn"]
    slope = 2 * (model(x).numpy() - y) / FEATURES  # of each example's own loss
    expected = [
        np.linalg.norm(slope @ np.linalg.matrix_power(weights.T, STEPS - t), axis=1).mean()
        for t in range(1, STEPS + 1)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    # A rotation leaves lengths as they are: each step back multiplies by the factor alone.
    np.testing.assert_allclose(found[:-1] / found[1:], 0.7, rtol=1e-5)


def test_they_do_not_depend_on_the_size_of_the_batch():
    model, _ = linear()
    x, y = sequences(), np.zeros((5, FEATURES), np.float32)
    measure = through_time.norms(model, keras.losses.MeanSquaredError())
    one, many = measure(x, y)["rnn"], measure(np.tile(x, (4, 1, 1)), np.tile(y, (4, 1)))["rnn"]
    np.testing.assert_allclose(one, many, rtol=1e-5)


@pytest.mark.parametrize("cell", [keras.layers.LSTM, keras.layers.SimpleRNN])
def test_of_labels_at_each_time_step_the_last_alone_counts(cell):
    keras.utils.set_random_seed(3)
    tokens = keras.Input((None,), dtype="int32")
    x = keras.layers.Embedding(7, FEATURES, name="embedding")(tokens)
    x = cell(4, return_sequences=True, name="first")(x)
    x = keras.layers.Dropout(0.5)(x)
    x = keras.layers.Bidirectional(cell(4, return_sequences=True), name="second")(x)
    model = keras.Model(tokens, keras.layers.Dense(7)(x))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    measure = through_time.norms(model, loss)
    x, y = NUMBERS.integers(0, 7, (3, STEPS), np.int32), NUMBERS.integers(0, 7, (3, STEPS))
    seeds = [np.asarray(variable) for variable in model.non_trainable_variables]

    found = measure(x, y)
    assert {path: norms.shape[0] for path, norms in found.items()} == {
        "first": STEPS,
        "second": STEPS,
    }
    other = y.copy()
    other[:, :-1] += 1
    for path, norms in measure(x, other % 7).items():
        np.testing.assert_array_equal(norms, found[path])

    # By hand: the same network on what the embedding gives.
    embedded = keras.Input((STEPS, FEATURES))
    values = embedded
    for layer in model.layers[2:]:
        values = layer(values)
    rest = keras.Model(embedded, values)
    inputs = tf.constant(model.get_layer("embedding")(x))
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        logits = rest(inputs, training=False)[:, -1]
        total = tf.reduce_sum(tf.nn.sparse_softmax_cross_entropy_with_logits(y[:, -1], logits))
    expected = np.linalg.norm(tape.gradient(total, inputs), axis=-1).mean(axis=0)
    np.testing.assert_allclose(found["first"], expected, rtol=1e-4)

    for layer in through_time.layers(model).values():
        assert "call" not in vars(layer)
    for before, variable in zip(seeds, model.non_trainable_variables, strict=True):
        np.testing.assert_array_equal(before, np.asarray(variable))
