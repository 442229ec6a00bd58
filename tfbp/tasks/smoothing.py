"""Label smoothing for labels that are class indices, which Keras's own loss does not take."""

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable("tfbp")
class SmoothedCrossentropy(keras.losses.SparseCategoricalCrossentropy):
    """Cross-entropy, in nats, of logits [batch, classes] against smoothed labels [batch].

    Args:
        label_smoothing: ε: the target is 1 - ε for the label, and ε / classes more for every class
            (Szegedy et al. 2016, "Rethinking the Inception Architecture", section 7).
        settings: of `keras.losses.SparseCategoricalCrossentropy`, from a saved config.
    """

    def __init__(self, label_smoothing: float, **settings: object):
        super().__init__(**{"from_logits": True, "name": "smoothed_crossentropy"} | settings)
        self.label_smoothing = label_smoothing

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        rows = keras.ops.one_hot(keras.ops.cast(y_true, "int32"), y_pred.shape[-1])
        return keras.losses.categorical_crossentropy(
            rows, y_pred, from_logits=True, label_smoothing=self.label_smoothing
        )

    def get_config(self) -> dict:
        return super().get_config() | {"label_smoothing": self.label_smoothing}
