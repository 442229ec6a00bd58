import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfbp import recipe
from tfbp.errors import UserError
from tfbp.gradients.check import RIGHT, check_gradients

BACKPROP = recipe.load("backprop", pathlib.Path(__file__).parents[2] / "recipes")
NUMBERS = np.random.default_rng(0)


def cross_entropy():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def images():
    """Returns a network with a kink, statistics, dropout and regularization, and a batch."""
    keras.utils.set_random_seed(0)
    x = keras.Input((5, 5, 2))
    y = keras.layers.Conv2D(3, 3, activation="relu", name="conv")(x)
    y = keras.layers.Dropout(0.3)(keras.layers.BatchNormalization(name="norm")(y))
    y = keras.layers.Flatten()(keras.layers.MaxPooling2D()(y))
    y = keras.layers.Dense(3, kernel_regularizer="l2", name="head")(y)
    return keras.Model(x, y), (NUMBERS.normal(0, 1, (4, 5, 5, 2)), NUMBERS.integers(0, 3, 4))


def text():
    """Returns a language model and a batch with a label for each time step."""
    keras.utils.set_random_seed(0)
    tokens = keras.Input((None,), dtype="int32")
    x = keras.layers.Embedding(9, 3, name="embedding")(tokens)
    x = keras.layers.LSTM(3, return_sequences=True, dropout=0.2, name="rnn")(x)
    model = keras.Model(tokens, keras.layers.Dense(9, name="logits")(x))
    return model, (NUMBERS.integers(0, 9, (2, 4), np.int32), NUMBERS.integers(0, 9, (2, 4)))


@pytest.mark.parametrize("build", [images, text])
def test_keras_gradients_are_right_and_the_model_stays_as_it_was(build):
    model, batch = build()
    model.compile("adam", cross_entropy(), metrics=["accuracy"])
    before = [np.asarray(variable) for variable in model.variables]
    optimizer = model.optimizer
    errors = check_gradients(model, batch, entries=6)
    assert max(errors.values()) < RIGHT
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(np.asarray(variable), value)
        assert variable.dtype == value.dtype
    assert {layer.dtype_policy.name for layer in model._flatten_layers()} == {"float32"}
    assert model.optimizer is optimizer and not optimizer.built
    outputs = model(batch[0])
    assert outputs.dtype == model.compute_loss(None, batch[1], outputs).dtype == tf.float32


def test_errors_are_named_by_layer_and_variable_of_what_is_trainable():
    model, batch = text()
    model.get_layer("embedding").trainable = False
    errors = check_gradients(model, batch, loss=cross_entropy(), entries=1)
    cell = [f"rnn/lstm_cell/{name}" for name in ("kernel", "recurrent_kernel", "bias")]
    assert list(errors) == [*cell, "logits/kernel", "logits/bias"]


def network(kind, activation="tanh"):
    """Returns a network of the recipe `backprop`, of another class, and a batch for it."""
    config = BACKPROP.Config(
        data="random?shape=6&classes=3&count=40", layers=(6, 5, 4, 3), activation=activation
    )
    keras.utils.set_random_seed(0)
    model = BACKPROP.model(config, BACKPROP.data(config))
    model.__class__ = kind
    x = NUMBERS.normal(0, 1, (4, 6)).astype(np.float32)
    x[0] = 0  # with biases of zero the first example stands right at the kink of every ReLU
    return model, (x, NUMBERS.integers(0, 3, 4), NUMBERS.uniform(0.5, 2, 4))


@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "relu"])
def test_a_backward_pass_by_hand_that_is_right_passes(activation):
    model, batch = network(BACKPROP.Backprop, activation)
    assert max(check_gradients(model, batch, loss=cross_entropy(), entries=8).values()) < RIGHT


class NoDerivative(BACKPROP.Backprop):
    """Forgets the derivative of the activation."""

    def gradients(self, x, y, weight):
        self.derivative = tf.ones_like
        return super().gradients(x, y, weight)


class NoWeights(BACKPROP.Backprop):
    """Forgets the weights of the examples."""

    def gradients(self, x, y, weight):
        return super().gradients(x, y, tf.ones_like(weight))


class Changed(BACKPROP.Backprop):
    """Changes one gradient, the bias of the second layer."""

    def gradients(self, x, y, weight):
        logits, losses, found = super().gradients(x, y, weight)
        return logits, losses, [*found[:3], self.change(found[3]), *found[4:]]


class Doubled(Changed):
    change = staticmethod(lambda gradient: 2 * gradient)


class Slightly(Changed):
    change = staticmethod(lambda gradient: 1.001 * gradient)


class Swapped(Changed):
    change = staticmethod(lambda gradient: tf.reverse(gradient, [0]))


class Forgotten(Changed):
    change = staticmethod(tf.zeros_like)


@pytest.mark.parametrize(
    ("kind", "error"),
    [(Doubled, 0.5), (Slightly, 1e-3), (Swapped, 0.1), (Forgotten, 1.0)],
)
def test_one_wrong_gradient_is_found_by_its_name(kind, error):
    model, batch = network(kind)
    errors = check_gradients(model, batch, loss=cross_entropy(), entries=8)
    wrong = [name for name, value in errors.items() if value > RIGHT]
    assert wrong == ["dense_2/bias"]
    assert errors["dense_2/bias"] > 0.9 * error


@pytest.mark.parametrize(
    ("kind", "right"), [(NoDerivative, {"logits/kernel", "logits/bias"}), (NoWeights, set())]
)
def test_a_wrong_step_of_the_chain_is_found_in_all_layers_behind_it(kind, right):
    model, batch = network(kind)
    errors = check_gradients(model, batch, loss=cross_entropy(), entries=8)
    assert {name for name, value in errors.items() if value < RIGHT} == right


def test_a_wrong_gradient_inside_a_layer_is_found():
    @tf.custom_gradient
    def square(x):
        return x * x, lambda upstream: upstream * x  # 2x is right

    class Square(keras.layers.Layer):
        def call(self, x):
            return square(x)

    x = keras.Input((3,))
    y = Square()(keras.layers.Dense(2, name="below")(x))
    model = keras.Model(x, keras.layers.Dense(1, name="above")(y))
    batch = NUMBERS.normal(0, 1, (4, 3)), NUMBERS.normal(0, 1, (4, 1))
    errors = check_gradients(model, batch, loss=keras.losses.MeanSquaredError())
    assert errors["below/kernel"] == pytest.approx(0.5, rel=1e-6)
    assert errors["above/kernel"] < RIGHT


def test_the_largest_entries_are_compared_and_some_of_the_others():
    class Sparse(keras.Model):
        """Has a wrong gradient in all entries of a large kernel but the largest."""

        def train_step(self, data):
            x, y, weight = data
            with tf.GradientTape() as tape:
                loss = self.compute_loss(x, y, self(x, training=True), weight)
            (gradient,) = tape.gradient(loss, self.trainable_variables)
            size = tf.abs(gradient)
            gradient = tf.where(size == tf.reduce_max(size), gradient, 0)
            self.optimizer.apply([gradient], self.trainable_variables)

    x = keras.Input((500,))
    model = Sparse(x, keras.layers.Dense(1, use_bias=False, name="dense")(x))
    model.compile("sgd", "mse")
    batch = NUMBERS.normal(0, 1, (2, 500)), np.ones((2, 1))
    assert check_gradients(model, batch, entries=1)["dense/kernel"] < RIGHT
    assert check_gradients(model, batch, entries=3)["dense/kernel"] == pytest.approx(1)


class ByHand(keras.Model):
    """Has float32 written into it."""

    def train_step(self, data):
        x, y, _ = data
        error = self(x) - tf.cast(y, tf.float32)
        self.optimizer.apply([tf.matmul(x, error, transpose_a=True)], self.trainable_variables)


def test_what_cannot_be_checked_is_refused():
    x = keras.Input((3,))
    dense = keras.layers.Dense(1, use_bias=False)(x)
    batch = np.ones((2, 3), np.float32), np.ones((2, 1), np.float32)
    with pytest.raises(UserError, match="must compute in the dtype of its variables"):
        check_gradients(ByHand(x, dense), batch, loss=keras.losses.MeanSquaredError())
    model = keras.Model(x, dense)
    with pytest.raises(UserError, match="`loss` must be given"):
        check_gradients(model, batch)
    with pytest.raises(UserError, match="`batch` must be"):
        check_gradients(model, (batch[0][:, :2], batch[1]), loss=keras.losses.MeanSquaredError())
    with pytest.raises(UserError, match="`loss` must be left out"):
        check_gradients(model, batch, loss=keras.losses.MeanSquaredError())
    with pytest.raises(UserError, match="`entries` must be at least 1"):
        check_gradients(model, batch, entries=0)
