"""Numbers for each example."""

import keras
import numpy as np
import tensorflow as tf

from tfbp.data.examples import Examples
from tfbp.errors import UserError
from tfbp.tasks import probe
from tfbp.tasks.task import Signature


class Regression:
    """Regression by the mean squared error: targets and answers float32 [k]."""

    def loss(self) -> keras.losses.Loss:
        """Returns the mean squared error."""
        return keras.losses.MeanSquaredError()

    def metrics(self) -> list[keras.metrics.Metric]:
        """Returns the mean absolute error."""
        return [keras.metrics.MeanAbsoluteError(name="mae")]

    def check(self, model: keras.Model, examples: Examples) -> None:
        """Refuses a model whose answer has not the shape of the targets.

        Raises:
            tfbp.UserError: says what does not fit; a shape that would broadcast is refused too.
        """
        target = examples.spec[1]
        if not target.dtype.is_floating:
            raise UserError(
                "`examples` must carry numbers to predict, as floats, for a regression. "
                f"Received: {target.dtype.name}."
            )
        answer = probe.outputs(model, examples)
        if answer.shape[1:] != tuple(target.shape):
            raise UserError(
                f"`model` must answer {list(target.shape)} for each example, like the targets. "
                f"Received: an answer of shape {list(answer.shape[1:])}."
            )

    def measure(self, x: tf.Tensor, y: tf.Tensor, outputs: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns `squared` and `absolute`, the mean errors of each example: float32 [batch]."""
        error = tf.cast(outputs, tf.float32) - y
        return {
            "squared": tf.reduce_mean(tf.square(error), axis=-1),
            "absolute": tf.reduce_mean(tf.abs(error), axis=-1),
        }

    def evaluate(self, measured: dict[str, np.ndarray], examples: Examples) -> dict:
        """Returns `loss` (the mean squared error) and `mae` (the mean absolute error)."""
        return {
            "loss": float(measured["squared"].mean(dtype=np.float64)),
            "mae": float(measured["absolute"].mean(dtype=np.float64)),
        }

    def signatures(self, model: keras.Model, examples: Examples) -> dict[str, Signature]:
        """Returns `serving_default`: `x`, as in the examples, → `y`, float32 [batch, k]."""
        spec, _ = examples.spec

        def predict(x):
            return {"y": tf.cast(model(x, training=False), tf.float32)}

        inputs = {"x": tf.TensorSpec([None, *spec.shape], spec.dtype)}
        return {"serving_default": Signature(predict, inputs)}

    def samples(self, examples: Examples, count: int) -> dict[str, dict[str, np.ndarray]]:
        """Returns one request of at most `count` examples, spread over the set."""
        x, _ = probe.few(examples, count)
        return {"serving_default": {"x": x}}

    def assets(self) -> dict[str, str]:
        """Returns nothing."""
        return {}
