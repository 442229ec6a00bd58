"""One rank for each example, out of classes that have an order."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from tfbp.data import images
from tfbp.data.examples import Examples
from tfbp.tasks import probabilities
from tfbp.tasks.classification import Classification
from tfbp.tasks.measures import MetricLike


@keras.saving.register_keras_serializable("tfbp")
class RankCrossentropy(keras.losses.Loss):
    """Cross-entropy, in nats, of logits of going on [batch, ranks - 1] against ranks [batch].

    Args:
        settings: of `keras.losses.Loss`, from a saved config.
    """

    from_logits = True

    def __init__(self, **settings: Any):
        super().__init__(**{"name": "rank_crossentropy"} | settings)

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        ranks = tf.cast(tf.reshape(y_true, [-1]), tf.int32)
        return -tf.gather(probabilities.of_ranks(y_pred), ranks, axis=1, batch_dims=1)


@keras.saving.register_keras_serializable("tfbp")
def rank_is_right(y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
    """Returns 1.0 where the predicted rank is the label, float32 [batch]."""
    ranks = tf.cast(tf.reshape(y_true, [-1]), tf.int64)
    return tf.cast(median(probabilities.of_ranks(y_pred)) == ranks, tf.float32)


@keras.saving.register_keras_serializable("tfbp")
def rank_error(y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
    """Returns how many ranks a prediction is away from the label, float32 [batch]."""
    ranks = tf.cast(tf.reshape(y_true, [-1]), tf.int64)
    return tf.cast(tf.abs(median(probabilities.of_ranks(y_pred)) - ranks), tf.float32)


def median(logarithms: tf.Tensor) -> tf.Tensor:
    """Returns the lowest rank that half of the probability does not exceed, int64 [batch].

    Of all ranks it has the least absolute error to expect.
    """
    at_most = tf.cumsum(tf.exp(logarithms), axis=-1)[:, :-1]
    return tf.reduce_sum(tf.cast(at_most < 0.5, tf.int64), axis=-1)


class Ordinal(Classification):
    """Classes that have an order: labels int64 [], logits float32 [classes - 1].

    Logit r says whether an example goes on above class r, given that it is r at least. The loss is
    the cross-entropy of the probabilities that follow: continuation-ratio logits (Agresti 2010,
    "Analysis of Ordinal Categorical Data", sec. 4.2), which CORN (Shi, Cao, Raschka 2021) trains by
    conditional subsets. Of the methods that know the order it is the simplest: any model with a
    dense last layer will do, where CORAL (Cao et al. 2020) needs a layer that shares its weights,
    and the probabilities are ones whatever the logits, where those of cumulative logits can cross.

    The class that is predicted is the median of the probabilities.

    Args:
        classes: the names, lowest first.
        class_weights, metrics, largest_image: see `tfbp.Classification`.

    Raises:
        tfbp.UserError: what `tfbp.Classification` raises.
    """

    reading = "ranks"
    _results = ("kappa",)

    def __init__(
        self,
        classes: Sequence[str] | None,
        *,
        class_weights: str | Mapping[Any, float] | None = None,
        metrics: Sequence[MetricLike] = (),
        largest_image: int = images.LARGEST,
    ):
        super().__init__(
            classes, class_weights=class_weights, metrics=metrics, largest_image=largest_image
        )
        self.logits, self._fixed = len(self.classes) - 1, True
        if _alphabetical(self.classes):
            logging.warning(
                "`classes` are in the order of the alphabet, %s. Where that is not theirs, give "
                "them lowest first where the data is loaded.",
                " < ".join(self.classes),
            )

    def _crossentropy(self, smoothing: float) -> keras.losses.Loss:
        return RankCrossentropy()

    def _own_metrics(self) -> list[keras.metrics.Metric]:
        return [
            keras.metrics.MeanMetricWrapper(rank_is_right, name="accuracy"),
            keras.metrics.MeanMetricWrapper(rank_error, name="mae"),
        ]

    def _due(self) -> str:
        return f"{self.logits} logits, one less than the {len(self.classes)} classes"

    def _of_classes(self, outputs: tf.Tensor) -> tf.Tensor:
        return probabilities.of_ranks(tf.cast(outputs, tf.float32))

    def _predicted(self, logits: tf.Tensor) -> tf.Tensor:
        return median(logits)

    def _probability(self, probabilities: tf.Tensor, predicted: tf.Tensor) -> tf.Tensor:
        return tf.gather(probabilities, predicted, axis=1, batch_dims=1)

    def evaluate(self, per_example: dict[str, np.ndarray], examples: Examples) -> dict:
        """Returns what a classification does, and after `accuracy` `mae`, the mean absolute error
        in ranks, and `kappa`, Cohen's kappa with quadratic weights, of the ranks of all classes.
        """
        results = super().evaluate(per_example, examples)
        label, predicted = per_example["label"], per_example["predicted"]
        first = {name: results.pop(name) for name in ("loss", "accuracy")}
        return {
            **first,
            "mae": float(np.abs(label - predicted).mean()),
            "kappa": kappa(label, predicted),
            **results,
        }


def _alphabetical(classes: Sequence[str]) -> bool:
    """Whether names stand as they are sorted by default: words, not letters or numbers."""
    words = any(len(name) > 1 and name.isalpha() for name in classes)
    return words and list(classes) == sorted(classes)


def kappa(label: np.ndarray, predicted: np.ndarray) -> float:
    """Returns Cohen's kappa with quadratic weights, 1 where all are right.

    1 minus the mean squared error over that of independent labels and predictions with the same
    frequencies (Cohen 1968).
    """
    label, predicted = label.astype(np.float64), predicted.astype(np.float64)
    found = np.square(label - predicted).mean()
    by_chance = label.var() + predicted.var() + np.square(label.mean() - predicted.mean())
    return float(1 - found / by_chance) if by_chance else 1.0
