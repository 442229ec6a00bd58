import keras
import numpy as np
import pytest
import tensorflow as tf

from tfbp.gradients import recorder as gradient_recorder

NUMBERS = np.random.default_rng(0)
X = NUMBERS.normal(0, 1, (8, 4)).astype(np.float32)
Y = NUMBERS.integers(0, 3, 8)
WEIGHT = NUMBERS.uniform(0.5, 2, 8).astype(np.float32)


def network(dtype="float32"):
    """Returns a compiled classifier with an embedding, dropout, statistics and an unused layer."""
    keras.utils.set_random_seed(1)
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy(dtype)
    try:
        x = keras.Input((4,))
        y = keras.layers.BatchNormalization()(keras.layers.Dropout(0.5)(x))
        rows = keras.layers.Embedding(5, 2)(keras.layers.Lambda(lambda x: 0 * x[:, 0] + 1)(x))
        y = keras.layers.Concatenate()([keras.layers.Dense(5, "tanh")(y), rows])
        model = keras.Model(x, keras.layers.Dense(3, kernel_regularizer="l2")(y))
    finally:
        keras.config.set_dtype_policy(policy)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=["accuracy"])
    return model


def state(model):
    return [np.asarray(v) for v in [*model.variables, *model.metrics_variables]]


def recorded(model):
    with gradient_recorder.untouched(model), gradient_recorder.recording(model) as recorder:
        model.train_step((X, Y, WEIGHT))
        return recorder.take()


def taped(model):
    """Returns the gradients by a tape around Keras's own loss."""
    with tf.GradientTape() as tape:
        loss = model.compute_loss(X, Y, model(X, training=True), WEIGHT)
    return [tf.convert_to_tensor(each) for each in tape.gradient(loss, model.trainable_variables)]


def test_it_is_the_gradient_that_a_tape_gives_with_the_same_dropout():
    model = network()
    model.compute_metrics(X, Y, model(X), WEIGHT)  # which makes the variables of the metrics
    for ours, theirs in zip(recorded(model), taped(model), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-7)


def test_weights_statistics_seeds_metrics_and_optimizer_stay():
    model = network()
    model.train_step((X, Y, WEIGHT))
    before, steps = state(model), int(model.optimizer.iterations)
    optimizer = model.optimizer
    first, second = recorded(model), recorded(model)
    for ours, theirs in zip(state(model), before, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert model.optimizer is optimizer and int(optimizer.iterations) == steps
    for ours, theirs in zip(first, second, strict=True):  # the same seeds, the same dropout
        np.testing.assert_array_equal(ours, theirs)
    model.train_step((X, Y, WEIGHT))
    assert any((a != b).any() for a, b in zip(state(model), before, strict=True))


def test_the_scale_of_a_float16_loss_is_taken_out():
    model = network("mixed_float16")
    model.compute_metrics(X, Y, model(X), WEIGHT)
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    for ours, theirs in zip(recorded(model), taped(model), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-2, atol=2e-3)


def test_a_variable_without_a_gradient_has_zeros_and_an_error_gives_the_optimizer_back():
    class Broken(keras.Model):
        def train_step(self, data):
            kernel = self.trainable_variables[0]
            self.optimizer.apply_gradients([(tf.ones(kernel.shape), kernel)])
            raise KeyError

    x = keras.Input((4,))
    model = Broken(x, keras.layers.Dense(3)(x))
    # A step by hand that does not scale its loss: nothing is to be taken out.
    model.compile(keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD()), "mse")
    optimizer = model.optimizer
    with pytest.raises(KeyError), gradient_recorder.recording(model) as recorder:
        model.train_step(None)
    assert model.optimizer is optimizer
    kernel, bias = recorder.take()
    assert (kernel.numpy() == 1).all() and (bias.numpy() == 0).all()
