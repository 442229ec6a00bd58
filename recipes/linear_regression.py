"""Fits y = wx + b by gradient descent, with the tape in plain sight.

    python -m recipes run linear_regression
    python -m recipes run linear_regression --data=proportional --bias=false

The default run, 3,000 steps of full-batch descent, ends within 2e-5 of the least squares solution
(w = 3.00728, b = 2.00811) after 12 seconds on 2 busy cores.
"""

import dataclasses

import keras
import tensorflow as tf

import tfbp
from tfbp.data import catalog
from tfbp.modeling import backbones


@dataclasses.dataclass(frozen=True)
class Config(tfbp.Config):
    data: str = tfbp.field("line", "a table: line, proportional or csv:PATH?target=COLUMN")
    bias: bool = tfbp.field(True, "learn b; without it, y = wx")
    optimizer: str = tfbp.field("sgd", "update rule", choices=("sgd", "adam", "adagrad", "rmsprop"))
    precision: str = tfbp.field("float32", "of its own gradients", choices=("float32",))
    learning_rate: float = tfbp.field(0.01, "learning rate", low=1e-8, high=10)
    epochs: int = tfbp.field(3000, "passes over the data", low=1)
    batch_size: int = tfbp.field(
        100, "examples per step; all of them: plain gradient descent", low=1
    )


class LinearRegression(keras.Model):
    """Linear least squares: x float32 [batch, features] → y float32 [batch, 1]."""

    def train_step(self, data):
        x, y, weight = data
        # tf.distribute sums the replicas' gradients, and the loss is their mean.
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        with tf.GradientTape() as tape:
            errors = self(x, training=True) - y
            loss = tf.reduce_mean(weight[:, tf.newaxis] * tf.square(errors))
            part = loss / replicas
        gradients = tape.gradient(part, self.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        self.metrics[0].update_state(loss, sample_weight=tf.shape(x)[0])
        return self.compute_metrics(x, y, errors + y)


def data(config):
    return catalog.load(config.data, seed=config.seed)


def task(config, splits):
    return tfbp.Regression()


def model(config, splits):
    x = keras.Input(splits.train.spec[0].shape, name="x")
    line = keras.layers.Dense(1, use_bias=config.bias, kernel_initializer="zeros", name="line")
    network = LinearRegression(x, line(x), name="linear_regression")
    if config.weights:
        backbones.load_whole(network, config.weights)
    return network


def phases(config):
    return [
        tfbp.Phase(
            "fit",
            trainable="line",
            epochs=config.epochs,
            learning_rate=config.learning_rate,
            optimizer=config.optimizer,
        )
    ]
