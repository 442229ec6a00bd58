import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfbp
from tfbp.errors import UserError
from tfbp.training import own_step

X = np.random.default_rng(0).normal(size=(48, 4)).astype(np.float32)
Y = (X[:, 0] > 0).astype(int)


class ByTheGuide(keras.Model):
    """As "Customizing what happens in fit()" begins."""

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            outputs = self(x, training=True)
            loss = self.compute_loss(y=y, y_pred=outputs)
        self.optimizer.apply(tape.gradient(loss, self.trainable_weights), self.trainable_weights)
        for metric in self.metrics:
            if metric.name == "loss":
                metric.update_state(loss, sample_weight=tf.shape(x)[0])
            else:
                metric.update_state(y, outputs)
        return {metric.name: metric.result() for metric in self.metrics}


def network(kind):
    x = keras.Input((4,))
    return kind(x, keras.layers.Dense(2, kernel_initializer="zeros", name="head")(x))


def fit(kind, strategy=None, **settings):
    weights = settings.pop("weights", None)
    splits = tfbp.Splits.from_arrays(X, Y, weights=weights, classes=("no", "yes"))
    task = tfbp.Classification(splits.classes, class_weights=settings.pop("class_weights", None))
    phase = tfbp.Phase("all", trainable=".*", epochs=2, learning_rate=0.1, accumulate=2)
    given = tfbp.Settings(batch_size=7, **settings)
    make = strategy.scope if strategy else functools.partial(tf.device, "CPU:0")
    with make():
        model = network(kind)
    return tfbp.fit(model, splits, task, [phase], given, strategy=strategy)


def test_a_step_as_in_the_guide_of_keras_ends_like_keras_own():
    ours, keras_own = fit(ByTheGuide, gradients=1), fit(keras.Model, gradients=1)
    for one, other in zip(ours.model.get_weights(), keras_own.model.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7)
    assert ours.history[-1]["loss"] == pytest.approx(keras_own.history[-1]["loss"], rel=1e-6)
    assert ours.history[-1]["gradient_norm/head"] > 0


def test_its_gradients_are_checked():
    model = network(ByTheGuide)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    assert max(tfbp.check_gradients(model, (X[:8], Y[:8]), loss=loss).values()) < 1e-4
    model = network(ByTheGuide)
    with pytest.raises(UserError, match=r"and `batch` has weights\. Let it begin"):
        tfbp.check_gradients(model, (X[:8], Y[:8], np.ones(8, np.float32)), loss=loss)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"class_weights": {"yes": 2.0}}, "classes have weights"),
        ({"weights": np.linspace(0.5, 1, 48)}, "the examples have weights"),
        ({"strategy": "mirrored"}, "devices share a batch unevenly"),
    ],
    ids=["classes", "examples", "devices"],
)
def test_weights_that_it_would_leave_out_are_refused(settings, said):
    if "strategy" in settings:
        settings = {"strategy": tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])}
    with pytest.raises(UserError, match=f"takes \\(x, y\\) without weights, and {said}"):
        fit(ByTheGuide, **settings)


def test_an_error_of_its_own_is_left_as_it_is():
    class Wrong(keras.Model):
        def train_step(self, data):
            _, _, _, _ = data

    with pytest.raises(ValueError, match="not enough values to unpack"):
        own_step.take(network(Wrong), X, Y, np.ones(48), weighed="")
