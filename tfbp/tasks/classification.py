"""One label for each example, out of a list of names."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfbp.data import images
from tfbp.data.examples import Examples
from tfbp.errors import UserError, mistake
from tfbp.tasks import assets, class_names, inputs, measures, probabilities, sample_outputs
from tfbp.tasks.measures import LossLike, MetricLike
from tfbp.tasks.one_hot import OF_ROWS, OneHot
from tfbp.tasks.scores import by_class, of_counts
from tfbp.tasks.smoothing import SmoothedCrossentropy
from tfbp.tasks.task import Signature, Task

BALANCED = "balanced"


class Classification:
    """Classification by softmax cross-entropy: labels int64 [], logits float32 [classes].

    A model for two classes may answer one logit instead, [1], of which the sigmoid is the
    probability of the second class: the loss is then binary cross-entropy.

    Args:
        classes: the names, in label order.
        loss: what is trained with instead, a keras.losses.Loss that takes labels, or one-hot rows,
            and logits; its name, or its config.
        metrics: keras.metrics.Metric objects, names or configs, beside the accuracy. They are given
            labels and probabilities.
        logits: that the model answers; None: one for each class, or what `suited` finds.
        label_smoothing: part of each label that is spread over all classes in the loss that is
            trained with (see `tfbp.tasks.smoothing`), in [0, 1).
        class_weights: the weight of an example of each class there. None: 1; "balanced": inverse to
            the size of its class, and 1 on average over the training examples; or name → weight, 1
            for a class that is not named. A number stands for the name where the names are whole
            numbers, and else for the label, from 0.
        largest_image: height and width that an image file may have for an export to decode it, in
            pixels.

    Results, `loss` included, are without smoothing and weights.

    Raises:
        tfbp.UserError: fewer than two names, or one twice; a smoothing or weight out of range; a
            weight for an unknown class; a loss or metric that is none, or takes something else.
    """

    # What makes probabilities of the model's answers, see `tfbp.tasks.probabilities`.
    reading = "softmax"
    _results: tuple[str, ...] = ()  # what results hold beside loss, metrics and report

    def __init__(
        self,
        classes: Sequence[str] | None,
        *,
        label_smoothing: float = 0.0,
        class_weights: str | Mapping[Any, float] | None = None,
        loss: LossLike | None = None,
        metrics: Sequence[MetricLike] = (),
        logits: int | None = None,
        largest_image: int = images.LARGEST,
    ):
        self.largest_image = largest_image
        if classes is None:
            raise UserError(
                "`classes` must be at least two different names. There are none: the data has "
                "values to predict, not labels. If they are labels, load them as whole numbers or "
                "names, or give `classes` where the data is loaded."
            )
        self.classes = class_names.names_of(classes, "must be at least two different names", 2)
        if not 0 <= label_smoothing < 1:
            raise mistake("label_smoothing", "must be at least 0 and below 1", label_smoothing)
        self.label_smoothing = label_smoothing
        self.class_weights = _check_weights(class_weights, self.classes)
        if logits not in (None, len(self.classes)) and (logits, len(self.classes)) != (1, 2):
            raise mistake("logits", "must be one for each class, or 1 for two classes", logits)
        self.logits = logits or len(self.classes)
        self._fixed = logits is not None
        self._loss = measures.loss_of(loss)
        if self._loss is not None and label_smoothing:
            raise UserError("`label_smoothing` must be a setting of `loss`, where there is one.")
        if isinstance(self._loss, OF_ROWS):
            self._loss = OneHot(self._loss)
        probabilities.check_loss(self._loss)
        self._metrics = measures.metrics_of(metrics, self._own_metrics(), self._results)
        probabilities.check(self._metrics)

    def loss(self) -> keras.losses.Loss:
        """Returns the loss to train with: the cross-entropy, in nats, or the one that was given."""
        return self._loss or self._crossentropy(self.label_smoothing)

    def _crossentropy(self, smoothing: float) -> keras.losses.Loss:
        if self.logits == 1:
            return keras.losses.BinaryCrossentropy(from_logits=True, label_smoothing=smoothing)
        if smoothing:
            return SmoothedCrossentropy(smoothing)
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
        """Returns the accuracy, the share of examples whose likeliest class is their label, and
        the metrics that were given.
        """
        reading = "sigmoid" if self.logits == 1 else self.reading
        return [*self._own_metrics(), *probabilities.metrics_of(self._metrics, reading)]

    def _own_metrics(self) -> list[keras.metrics.Metric]:
        if self.logits == 1:
            right = keras.metrics.binary_accuracy
            return [keras.metrics.MeanMetricWrapper(right, name="accuracy", threshold=0.0)]
        return [keras.metrics.SparseCategoricalAccuracy(name="accuracy")]

    def check(self, model: keras.Model, examples: Examples) -> None:
        """Refuses a model that answers other logits, labels outside the classes, and a loss or
        metrics that do not take them.

        Raises:
            tfbp.UserError: says what does not fit.
        """
        self._labels(examples)
        answer = sample_outputs.outputs(model, examples)
        if answer.ndim != 2 or answer.shape[1] != self.logits:
            raise UserError(
                f"`model` must answer {self._due()}. "
                f"Received: an answer of shape {list(answer.shape[1:])}."
            )
        _, y = sample_outputs.few(examples, len(answer))
        measures.check(self.loss(), self.metrics(), y, answer)

    def _due(self) -> str:
        if self.logits == 1:
            return "one logit, of the second of two classes"
        more = ", or one with `logits=1`" if len(self.classes) == 2 else ""
        return f"one logit for each of the {len(self.classes)} classes{more}"

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
        loss = self.loss()
        if measures.made_of(loss) == measures.made_of(self._crossentropy(self.label_smoothing)):
            loss = self._crossentropy(0.0)
        values = {
            "loss": measures.each(loss, y, outputs),
            "label": y,
            "predicted": self._predicted(self._of_classes(outputs)),
        }
        if self._metrics or type(self).metrics is not Classification.metrics:
            values |= measures.kept(y, outputs)
        return values

    def _others(self) -> list[keras.metrics.Metric]:
        return measures.others(self.metrics(), self._own_metrics())

    def _of_classes(self, outputs: tf.Tensor) -> tf.Tensor:
        """Returns logits of all classes, of which the softmax is their probabilities."""
        logits = tf.cast(outputs, tf.float32)
        return tf.pad(logits, [[0, 0], [1, 0]]) if self.logits == 1 else logits

    def _predicted(self, logits: tf.Tensor) -> tf.Tensor:
        """Returns the label that is predicted, int64 [batch], from the logits of all classes."""
        return tf.argmax(logits, axis=-1)

    def evaluate(self, per_example: dict[str, np.ndarray], examples: Examples) -> dict:
        """Returns `loss` (nats), `accuracy`, the metrics that were given, and `report`.

        The report holds precision, recall and F1 for each class (with its support, the number of
        its examples), their plain mean (`macro`) and their mean by support (`weighted`), as
        scikit-learn defines them; where a ratio has no denominator it is 0.
        """
        size = len(self.classes)
        pairs = per_example["label"] * size + per_example["predicted"]
        confusion = np.bincount(pairs, minlength=size**2).reshape(size, size)
        right, support, predicted = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
        scores = of_counts(right, support, predicted)
        return {
            "loss": float(per_example["loss"].mean(dtype=np.float64)),
            "accuracy": float(right.sum() / support.sum()),
            **measures.values(self._others(), per_example),
            "report": by_class(self.classes, scores, support),
        }

    def signatures(self, model: keras.Model, examples: Examples) -> dict[str, Signature]:
        """Returns `serving_default`, and for images `image_bytes`.

        They take what `tfbp.tasks.inputs.of` says, arrays as `features`, and answer, best guess
        first, `class` (string [batch]) and `probability` (float32 [batch]), then for all classes in
        label order `classes` (string) and `probabilities` (float32 [batch, classes]), and `logits`
        (float32, as the model answers them). For an image file that is no good these are "" and 0.
        """

        def classify(x: tf.Tensor) -> dict[str, tf.Tensor]:
            answer = tf.cast(model(x, training=False), tf.float32)
            logits = self._of_classes(answer)
            probabilities = tf.nn.softmax(logits)
            predicted = self._predicted(logits)
            names = tf.constant(self.classes)
            # Not the names themselves: other engines cannot broadcast strings.
            labels = tf.broadcast_to(tf.range(len(self.classes)), tf.shape(logits))
            return {
                "class": tf.gather(names, predicted),
                "probability": self._probability(probabilities, predicted),
                "classes": tf.gather(names, labels),
                "probabilities": probabilities,
                "logits": answer,
            }

        taken = inputs.of(examples, array="features", largest_image=self.largest_image, model=model)
        return inputs.signatures(taken, classify, examples, bad=0.0)

    def _probability(self, probabilities: tf.Tensor, predicted: tf.Tensor) -> tf.Tensor:
        """Returns the probability of the class that is predicted, float32 [batch]."""
        return tf.reduce_max(probabilities, axis=-1)

    def assets(self) -> dict[str, str]:
        """Returns `labels.txt`: the class names, one a line, in label order."""
        return {assets.LABELS: "".join(f"{name}\n" for name in self.classes)}


def suited(task: Task, model: keras.Model) -> Task:
    """Returns a task as it suits a model: of two classes, with one logit where the model has one.

    What it finds is a matter of the model's graph: a subclassed model of one logit is given
    `Classification(classes, logits=1)`.
    """
    shape = getattr(model, "output_shape", None) if hasattr(model, "outputs") else None
    one = isinstance(shape, tuple) and len(shape) == 2 and shape[1] == 1
    if isinstance(task, Classification) and not task._fixed and len(task.classes) == 2 and one:
        task = copy.copy(task)
        task.logits = 1
    return task


def _check_weights(
    weights: str | Mapping[Any, float] | None, classes: Sequence[str]
) -> str | dict[str, float] | None:
    if weights is None or weights == BALANCED:
        return weights
    if not isinstance(weights, Mapping):
        raise mistake("class_weights", "must be None, 'balanced' or name → weight", weights)
    return class_names.weights_by_name(weights, classes)
