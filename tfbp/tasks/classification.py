"""One label for each example, out of a list of names."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfbp.data import images
from tfbp.data.examples import Examples
from tfbp.errors import UserError, mistake
from tfbp.tasks import assets, inputs, sample_outputs
from tfbp.tasks.smoothing import SmoothedCrossentropy
from tfbp.tasks.task import Signature

BALANCED = "balanced"


class Classification:
    """Classification by softmax cross-entropy: labels int64 [], logits float32 [classes].

    Args:
        classes: the names, in label order.
        label_smoothing: part of each label that is spread over all classes in the loss that is
            trained with (see `tfbp.tasks.smoothing`), in [0, 1).
        class_weights: the weight of an example of each class there. None: 1; "balanced": inverse to
            the size of its class, and 1 on average over the training examples; or name, or label,
            → weight, 1 for a class that is not named.
        largest_image: height and width that an image file may have for an export to decode it, in
            pixels.

    Results, `loss` included, are without smoothing and weights.

    Raises:
        tfbp.UserError: fewer than two names, or one twice; a smoothing or weight out of range; a
            weight for an unknown class.
    """

    def __init__(
        self,
        classes: Sequence[str] | None,
        *,
        label_smoothing: float = 0.0,
        class_weights: str | Mapping[Any, float] | None = None,
        largest_image: int = images.LARGEST,
    ):
        self.largest_image = largest_image
        if classes is None:
            raise UserError(
                "`classes` must be at least two different names. There are none: the data has "
                "values to predict, not labels. If they are labels, load them as whole numbers or "
                "names, or give `classes` where the data is loaded."
            )
        self.classes = tuple(classes)
        if len(self.classes) < 2 or len(set(self.classes)) < len(self.classes):
            raise mistake("classes", "must be at least two different names", classes)
        if not 0 <= label_smoothing < 1:
            raise mistake("label_smoothing", "must be at least 0 and below 1", label_smoothing)
        self.label_smoothing = label_smoothing
        self.class_weights = _check_weights(class_weights, self.classes)

    def loss(self) -> keras.losses.Loss:
        """Returns the cross-entropy, in nats, from logits."""
        if self.label_smoothing:
            return SmoothedCrossentropy(self.label_smoothing)
        return keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def class_weights_for(self, examples: Examples) -> np.ndarray | None:
        """Returns the weight of an example of each class, float32 [classes]; None: all the same.

        Args:
            examples: those that are trained on, by which classes are balanced.

        Raises:
            tfbp.UserError: classes are to be balanced, and an example has no label of theirs.
        """
        if self.class_weights is None:
            return None
        if isinstance(self.class_weights, str):  # BALANCED
            counts = np.bincount(self._labels(examples), minlength=len(self.classes))
            # A class that does not occur has no weight to speak of.
            share = np.maximum(counts, 1) * np.count_nonzero(counts)
            return (examples.size / share).astype(np.float32)
        return np.array([self.class_weights.get(name, 1) for name in self.classes], np.float32)

    def metrics(self) -> list[keras.metrics.Metric]:
        """Returns the share of examples whose largest logit is that of their label."""
        return [keras.metrics.SparseCategoricalAccuracy(name="accuracy")]

    def check(self, model: keras.Model, examples: Examples) -> None:
        """Refuses a model that does not answer one logit a class, and labels outside the classes.

        Raises:
            tfbp.UserError: says what does not fit.
        """
        self._labels(examples)
        answer = sample_outputs.outputs(model, examples)
        if answer.ndim != 2 or answer.shape[1] != len(self.classes):
            raise UserError(
                f"`model` must answer one logit for each of the {len(self.classes)} classes. "
                f"Received: an answer of shape {list(answer.shape[1:])}."
            )

    def _labels(self, examples: Examples) -> np.ndarray:
        if examples.labels is None:
            raise UserError("`examples` must carry one label each for a classification.")
        outside = np.flatnonzero((examples.labels < 0) | (examples.labels >= len(self.classes)))
        if outside.size:
            first = outside[0]
            raise UserError(
                f"`labels` must be from 0 to {len(self.classes) - 1}, for the classes "
                f"{', '.join(self.classes)}. Received: {examples.labels[first]} at "
                f"{examples.name(int(first))}, and {outside.size - 1} more."
            )
        return examples.labels

    def per_example(self, x: tf.Tensor, y: tf.Tensor, outputs: tf.Tensor) -> dict[str, tf.Tensor]:
        """Computes `loss` (nats), `label` and `predicted` of each example: [batch]."""
        logits = tf.cast(outputs, tf.float32)
        return {
            "loss": tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits),
            "label": y,
            "predicted": tf.argmax(logits, axis=-1),
        }

    def evaluate(self, per_example: dict[str, np.ndarray], examples: Examples) -> dict:
        """Returns `loss` (nats), `accuracy` and `report`.

        The report holds precision, recall and F1 for each class (with its support, the number of
        its examples), their plain mean (`macro`) and their mean by support (`weighted`), as
        scikit-learn defines them; where a ratio has no denominator it is 0.
        """
        size = len(self.classes)
        pairs = per_example["label"] * size + per_example["predicted"]
        confusion = np.bincount(pairs, minlength=size**2).reshape(size, size)
        right, support, predicted = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
        scores = {
            "precision": _ratio(right, predicted),
            "recall": _ratio(right, support),
            "f1": _ratio(2 * right, support + predicted),
        }
        per_class = {
            name: {score: float(values[label]) for score, values in scores.items()}
            | {"support": int(support[label])}
            for label, name in enumerate(self.classes)
        }
        weighted = {
            score: float(np.average(values, weights=support)) for score, values in scores.items()
        }
        return {
            "loss": float(per_example["loss"].mean(dtype=np.float64)),
            "accuracy": float(right.sum() / support.sum()),
            "report": {
                "per_class": per_class,
                "macro": {score: float(values.mean()) for score, values in scores.items()},
                "weighted": weighted,
            },
        }

    def signatures(self, model: keras.Model, examples: Examples) -> dict[str, Signature]:
        """Returns `serving_default`, and for images `image_bytes`.

        They take what `tfbp.tasks.inputs.of` says, arrays as `features`, and answer, best guess
        first, `class` (string [batch]) and `probability` (float32 [batch]), then for all classes in
        label order `classes` (string), `probabilities` and `logits` (float32 [batch, classes]). For
        an image file that is no good these are "" and 0.
        """

        def classify(x: tf.Tensor) -> dict[str, tf.Tensor]:
            logits = tf.cast(model(x, training=False), tf.float32)
            probabilities = tf.nn.softmax(logits)
            names = tf.constant(self.classes)
            # Not the names themselves: other engines cannot broadcast strings.
            labels = tf.broadcast_to(tf.range(len(self.classes)), tf.shape(logits))
            return {
                "class": tf.gather(names, tf.argmax(logits, axis=-1)),
                "probability": tf.reduce_max(probabilities, axis=-1),
                "classes": tf.gather(names, labels),
                "probabilities": probabilities,
                "logits": logits,
            }

        taken = inputs.of(examples, array="features", largest_image=self.largest_image)
        return inputs.signatures(taken, classify, examples, bad=0.0)

    def assets(self) -> dict[str, str]:
        """Returns `labels.txt`: the class names, one a line, in label order."""
        return {assets.LABELS: "".join(f"{name}\n" for name in self.classes)}


def _check_weights(
    weights: str | Mapping[Any, float] | None, classes: Sequence[str]
) -> str | dict[str, float] | None:
    if weights is None or weights == BALANCED:
        return weights
    if not isinstance(weights, Mapping):
        raise mistake("class_weights", "must be None, 'balanced' or name → weight", weights)
    by_name: dict[str, float] = {}
    for key, weight in weights.items():
        name = key
        if isinstance(key, (int, np.integer)) and key not in classes:
            if not 0 <= key < len(classes):
                rule = f"must be for the labels 0 to {len(classes) - 1}, or name classes"
                raise mistake("class_weights", rule, key)
            name = classes[int(key)]
        if name not in classes:
            raise mistake("class_weights", "must name classes", name, classes)
        if name in by_name:
            raise mistake("class_weights", "must give each class one weight", name)
        if not 0 < weight < float("inf"):
            raise mistake("class_weights", f"must be above 0 and finite, for {name!r}", weight)
        by_name[name] = weight
    return by_name


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.zeros(len(part)), where=whole > 0)
