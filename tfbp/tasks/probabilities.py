"""Metrics of probabilities, for models that answer logits."""

from typing import Any

import keras
import tensorflow as tf

from tfbp.errors import mistake
from tfbp.tasks import measures


def of_ranks(logits: tf.Tensor) -> tf.Tensor:
    """Returns the logarithms of the probabilities of ranks, [batch, ranks].

    Args:
        logits: [batch, ranks - 1], of going on: that the rank is above r, given that it is r at
            least (continuation-ratio logits; Agresti 2010, "Analysis of Ordinal Categorical Data",
            sec. 4.2).
    """
    above, stays = tf.math.log_sigmoid(logits), tf.math.log_sigmoid(-logits)
    # The last rank stays by itself: there is none above it.
    stays = tf.pad(stays, [[0, 0], [0, 1]])
    return stays + tf.pad(tf.cumsum(above, axis=-1), [[0, 0], [1, 0]])


# Losses of scores without bounds, of which the logits are some.
OF_SCORES = (keras.losses.Hinge, keras.losses.SquaredHinge, keras.losses.CategoricalHinge)

READINGS = {
    "softmax": tf.nn.softmax,
    "sigmoid": tf.sigmoid,
    "ranks": lambda logits: tf.exp(of_ranks(logits)),
}


@keras.saving.register_keras_serializable("tfbp")
class OfProbabilities(keras.metrics.Metric):
    """A metric that is given probabilities where the model answers logits.

    Args:
        metric: takes targets and probabilities.
        reading: from the logits to them, a name in `READINGS`.
    """

    def __init__(self, metric: keras.metrics.Metric, reading: str, **settings: Any):
        super().__init__(**{"name": metric.name} | settings)
        self.metric, self.reading = metric, reading

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        logits = tf.cast(tf.convert_to_tensor(y_pred), tf.float32)
        self.metric.update_state(y_true, READINGS[self.reading](logits), sample_weight)

    def result(self) -> Any:
        return self.metric.result()

    def reset_state(self) -> None:
        self.metric.reset_state()

    def get_config(self) -> dict:
        metric = keras.saving.serialize_keras_object(self.metric)
        return super().get_config() | {"metric": metric, "reading": self.reading}

    @classmethod
    def from_config(cls, config: dict) -> "OfProbabilities":
        metric = keras.saving.deserialize_keras_object(config["metric"])
        return cls(**config | {"metric": metric})


def metrics_of(
    metrics: tuple[keras.metrics.Metric, ...], reading: str
) -> list[keras.metrics.Metric]:
    """Returns metrics anew, each given the probabilities that `reading` makes of logits."""
    return [OfProbabilities(measures.anew(metric), reading) for metric in metrics]


def check(metrics: tuple[keras.metrics.Metric, ...]) -> None:
    """Refuses metrics that would make probabilities of probabilities.

    Raises:
        tfbp.UserError: one has `from_logits`.
    """
    for metric in metrics:
        if metric.get_config().get("from_logits"):
            rule = "are given probabilities, not logits: leave `from_logits=True` out"
            raise mistake("metrics", rule, metric.name)


def check_loss(loss: keras.losses.Loss | None) -> None:
    """Refuses a loss of Keras that takes probabilities or values, where the model answers logits.

    Raises:
        tfbp.UserError: it has `from_logits=False`, or is none of logits and no hinge either.
    """
    if getattr(loss, "from_logits", True) is False:
        rule = "must take logits, `from_logits=True`: the export makes probabilities of them"
        raise mistake("loss", rule, getattr(loss, "name", ""))
    known = type(loss) in vars(keras.losses).values()
    if known and not hasattr(loss, "from_logits") and not isinstance(loss, OF_SCORES):
        rule = "must take logits, as cross-entropies do with `from_logits=True`, or be a hinge"
        raise mistake("loss", rule, getattr(loss, "name", ""))
