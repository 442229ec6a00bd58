"""Losses of one-hot rows, for labels that are class indices."""

from typing import Any

import keras
import tensorflow as tf

OF_ROWS = (keras.losses.CategoricalCrossentropy, keras.losses.CategoricalFocalCrossentropy)


@keras.saving.register_keras_serializable("tfbp")
class OneHot(keras.losses.Loss):
    """A loss that is given one-hot rows, where the labels are class indices, [batch].

    Args:
        loss: takes one-hot rows and logits, both [batch, classes].
        settings: of `keras.losses.Loss`, from a saved config.
    """

    def __init__(self, loss: keras.losses.Loss, **settings: Any):
        super().__init__(**{"name": loss.name} | settings)
        self.loss = loss
        self.from_logits = getattr(loss, "from_logits", True)

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        rows = keras.ops.one_hot(keras.ops.cast(y_true, "int32"), y_pred.shape[-1])
        return self.loss.call(rows, y_pred)

    def get_config(self) -> dict:
        loss = keras.saving.serialize_keras_object(self.loss)
        return super().get_config() | {"loss": loss}

    @classmethod
    def from_config(cls, config: dict) -> "OneHot":
        return cls(**config | {"loss": keras.saving.deserialize_keras_object(config["loss"])})
