"""Binary cross-entropy in which finding a label counts more than leaving it out."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable("tfbp")
class PositiveWeighted(keras.losses.Loss):
    """Binary cross-entropy, in nats, of logits [batch, labels], the mean over the labels.

    Args:
        weights: of each label: the factor of its cross-entropy where it is there.
        settings: of `keras.losses.Loss`, from a saved config.
    """

    from_logits = True

    def __init__(self, weights: Sequence[float], **settings: Any):
        super().__init__(**{"name": "positive_weighted"} | settings)
        self.weights = [float(weight) for weight in weights]

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        weights = tf.constant(self.weights, y_pred.dtype)
        targets = tf.cast(y_true, y_pred.dtype)
        values = tf.nn.weighted_cross_entropy_with_logits(targets, y_pred, weights)
        return tf.reduce_mean(values, axis=-1)

    def get_config(self) -> dict:
        return super().get_config() | {"weights": self.weights}
