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


@dataclasses.dataclass(frozen=True)
class Config(tfbp.Config):
    data: str = tfbp.field("line", "a table: line, proportional or csv:PATH?target=COLUMN")
    bias: bool = tfbp.field(True, "learn b; without it, y = wx")
    optimizer: str = tfbp.field("sgd", "update rule", choices=("sgd", "adam", "adagrad", "rmsprop"))
    precision: str = tfbp.field("float32", "of its own gradients", choices=("float32",))
    learning_rate: float = tfbp.field(0.01, "learning rate", low=1e-8, high=10)
    epochs: int = tfbp.field(3000, "passes over the data", low=1)
    batch_size: int = tfbp.field(100, "examples per step; all of them: gradient descent", low=1)


class LinearRegression(keras.Model):
    """Linear least squares: x float32 [batch, features] → y float32 [batch, 1]."""

    def train_step(self, data: tuple[tf.Tensor, ...]) -> dict[str, tf.Tensor]:
        x, y, weight = data
        with tf.GradientTape() as tape:
            errors = self(x, training=True) - y
            loss = tf.reduce_mean(weight[:, tf.newaxis] * tf.square(errors))
            # tf.distribute sums the replicas' gradients, and the loss is their mean.
            part = loss / tf.distribute.get_strategy().num_replicas_in_sync
        gradients = tape.gradient(part, self.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        self.metrics[0].update_state(loss, sample_weight=tf.shape(x)[0])
        return self.compute_metrics(x, y, errors + y)


def data(config: Config) -> tfbp.Splits:
    return tfbp.load_data(config.data, seed=config.seed, on_bad_example=config.on_bad_example)


def task(config: Config, splits: tfbp.Splits) -> tfbp.Task:
    return tfbp.Regression()


def model(config: Config, splits: tfbp.Splits) -> keras.Model:
    x = keras.Input(splits.train.spec[0].shape, name="x")
    line = keras.layers.Dense(1, use_bias=config.bias, kernel_initializer="zeros", name="line")
    return tfbp.load_weights(LinearRegression(x, line(x), name="linear_regression"), config.weights)


def phases(config: Config) -> list[tfbp.Phase]:
    rate, rule = config.learning_rate, config.optimizer
    return [tfbp.Phase("fit", "line", epochs=config.epochs, learning_rate=rate, optimizer=rule)]
