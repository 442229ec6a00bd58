"""Numbers for each example."""

import math
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from tfbp.data import images
from tfbp.data.examples import Examples
from tfbp.errors import UserError
from tfbp.tasks import inputs, measures, sample_outputs
from tfbp.tasks.measures import LossLike, MetricLike
from tfbp.tasks.task import Signature


class Regression:
    """Regression by the mean squared error: targets and outputs float32 [k].

    Args:
        loss: what is trained with instead, a keras.losses.Loss, its name or its config.
        metrics: keras.metrics.Metric objects, names or configs, beside the mean absolute error.
        largest_image: height and width that an image file may have for an export to decode it, in
            pixels.

    Raises:
        tfbp.UserError: a loss or metric that is none.
    """

    def __init__(
        self,
        *,
        loss: LossLike | None = None,
        metrics: Sequence[MetricLike] = (),
        largest_image: int = images.LARGEST,
    ):
        self.largest_image = largest_image
        self._loss = measures.loss_of(loss)
        self._metrics = measures.metrics_of(metrics, self._own_metrics())

    def loss(self) -> keras.losses.Loss:
        """Returns the loss to train with: the mean squared error, or the one that was given."""
        return self._loss or keras.losses.MeanSquaredError()

    def class_weights_for(self, examples: Examples) -> None:
        """Returns None: there are no classes."""

    def metrics(self) -> list[keras.metrics.Metric]:
        """Returns the mean absolute error, and the metrics that were given."""
        return [*self._own_metrics(), *map(measures.anew, self._metrics)]

    def _own_metrics(self) -> list[keras.metrics.Metric]:
        return [keras.metrics.MeanAbsoluteError(name="mae")]

    def check(self, model: keras.Model, examples: Examples) -> None:
        """Refuses a model whose output has not the shape of the targets, and a loss or metrics that
        do not take them.

        Raises:
            tfbp.UserError: says what does not fit; a shape that would broadcast is refused too.
        """
        target = examples.spec[1]
        if not target.dtype.is_floating:
            raise UserError(
                "`examples` must carry numbers to predict, as floats, for a regression. "
                f"Received: {target.dtype.name}."
            )
        answer = sample_outputs.outputs(model, examples)
        if answer.shape[1:] != tuple(target.shape):
            raise UserError(
                f"`model` must answer {list(target.shape)} for each example, like the targets. "
                f"Received: an answer of shape {list(answer.shape[1:])}."
            )
        _, y = sample_outputs.few(examples, len(answer))
        measures.check(self.loss(), self.metrics(), y, answer)

    def per_example(self, x: tf.Tensor, y: tf.Tensor, outputs: tf.Tensor) -> dict[str, tf.Tensor]:
        """Computes `loss` and `absolute`, the mean absolute error, of each example: [batch]."""
        error = tf.cast(outputs, tf.float32) - y
        values = {
            "loss": measures.each(self.loss(), y, outputs),
            "absolute": tf.reduce_mean(tf.abs(error), axis=-1),
        }
        if self._metrics or type(self).metrics is not Regression.metrics:
            values |= measures.kept(y, outputs)
        return values

    def _others(self) -> list[keras.metrics.Metric]:
        return measures.others(self.metrics(), self._own_metrics())

    def evaluate(self, per_example: dict[str, np.ndarray], examples: Examples) -> dict:
        """Returns `loss`, `mae` (the mean absolute error), and the metrics that were given."""
        return {
            "loss": float(per_example["loss"].mean(dtype=np.float64)),
            "mae": float(per_example["absolute"].mean(dtype=np.float64)),
            **measures.values(self._others(), per_example),
        }

    def signatures(self, model: keras.Model, examples: Examples) -> dict[str, Signature]:
        """Returns `serving_default`, and for images `image_bytes`.

        They take what `tfbp.tasks.inputs.of` says, arrays as `x`, and answer `y`, float32
        [batch, k]; for a table each value by its name, float32 [batch]. For an image file that is
        no good that is NaN.
        """

        def predict(x: tf.Tensor) -> dict[str, tf.Tensor]:
            y = tf.cast(model(x, training=False), tf.float32)
            if examples.values:
                names = inputs.identifiers(examples.values)
                return dict(zip(names, tf.unstack(y, axis=1), strict=True))
            return {"y": y}

        taken = inputs.of(examples, array="x", largest_image=self.largest_image, model=model)
        return inputs.signatures(taken, predict, examples, bad=math.nan)

    def assets(self) -> dict[str, str]:
        """Returns nothing."""
        return {}
