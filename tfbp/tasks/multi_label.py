"""Any number of labels for each example, out of a list of names."""

import math
from collections.abc import Mapping, Sequence

import keras
import numpy as np
import tensorflow as tf

from tfbp.data import images
from tfbp.data.examples import Examples
from tfbp.errors import UserError, mistake
from tfbp.tasks import assets, class_names, inputs, measures, probabilities, sample_outputs
from tfbp.tasks.measures import LossLike, MetricLike
from tfbp.tasks.one_hot import OF_ROWS
from tfbp.tasks.positive import PositiveWeighted
from tfbp.tasks.scores import average_precision, report
from tfbp.tasks.task import Signature

_RESULTS = ("exact", "macro_f1", "micro_f1", "mean_average_precision")


class MultiLabel:
    """Several labels by binary cross-entropy: targets float32 [classes] of 0 and 1, logits alike.

    Args:
        classes: the names of the labels, in the order of the targets.
        thresholds: the probability above which a label is chosen, in (0, 1): one for all, or name →
            threshold, 0.5 for a label that is not named.
        positive_weights: name → factor of the cross-entropy where the label is there, 1 for a label
            that is not named: the rarer a label, the more it may count. Results are without.
        loss: what is trained with instead of the mean binary cross-entropy of an example's labels,
            a keras.losses.Loss that takes targets and logits; its name, or its config.
        metrics: keras.metrics.Metric objects, names or configs, beside the accuracy. They are given
            targets and probabilities.
        largest_image: height and width that an image file may have for an export to decode it, in
            pixels.

    Raises:
        tfbp.UserError: no names, or one twice; a threshold or weight out of range or for an unknown
            label; a loss or metric that is none, or takes something else.
    """

    def __init__(
        self,
        classes: Sequence[str] | None,
        *,
        thresholds: float | Mapping[str, float] = 0.5,
        positive_weights: Mapping[str, float] | None = None,
        loss: LossLike | None = None,
        metrics: Sequence[MetricLike] = (),
        largest_image: int = images.LARGEST,
    ):
        rule = "must be names that differ, one for each label"
        self.classes = class_names.names_of(() if classes is None else classes, rule)
        self.thresholds = _thresholds(thresholds, self.classes)
        self.largest_image = largest_image
        self.positive_weights = _positive_weights(positive_weights or {}, self.classes)
        self._loss = measures.loss_of(loss)
        if self._loss is not None and self.positive_weights:
            raise UserError("`positive_weights` must be a matter of `loss`, where there is one.")
        probabilities.check_loss(self._loss)
        if isinstance(self._loss, (*OF_ROWS, keras.losses.SparseCategoricalCrossentropy)):
            rule = "must take each label by itself, and this one takes a softmax of them all"
            raise mistake("loss", rule, self._loss.name)
        self._metrics = measures.metrics_of(metrics, self._own_metrics(), _RESULTS)
        probabilities.check(self._metrics)

    def loss(self) -> keras.losses.Loss:
        """Returns the mean binary cross-entropy over the labels, in nats, or what was given."""
        if self.positive_weights:
            return PositiveWeighted(self.positive_weights)
        return self._loss or keras.losses.BinaryCrossentropy(from_logits=True)

    def class_weights_for(self, examples: Examples) -> None:
        """Returns None: an example has more than one class, or none."""

    def metrics(self) -> list[keras.metrics.Metric]:
        """Returns the accuracy, the share of labels that are rightly chosen or left out, and the
        metrics that were given.
        """
        return [*self._own_metrics(), *probabilities.metrics_of(self._metrics, "sigmoid")]

    def _own_metrics(self) -> list[keras.metrics.Metric]:
        # As logits, since that is what the model answers.
        logits = [math.log(threshold / (1 - threshold)) for threshold in self.thresholds]
        right = keras.metrics.binary_accuracy
        return [keras.metrics.MeanMetricWrapper(right, name="accuracy", threshold=logits)]

    def check(self, model: keras.Model, examples: Examples) -> None:
        """Refuses targets that are not 0 and 1, a model that does not answer one logit a label, and
        a loss or metrics that do not take them.

        Raises:
            tfbp.UserError: says what does not fit.
        """
        targets, count = examples.targets, len(self.classes)
        if examples.labels is not None:
            raise UserError(
                "`examples` must carry 0 or 1 for each label. They carry one label each: that is "
                "`tfbp.Classification`. Where rows of 0 and 1 happen to have one 1 each, give them "
                "as floats and without `classes`: `y.astype('float32')`."
            )
        if targets.shape[1:] != (count,):
            raise UserError(
                f"`examples` must carry 0 or 1 for each of the {count} labels. "
                f"Received: targets of shape {list(targets.shape[1:])}."
            )
        outside = np.argwhere((targets != 0) & (targets != 1))
        if len(outside):
            row, label = outside[0]
            raise UserError(
                f"`examples` must carry 0 or 1 for each label. Received: {targets[row, label]:g} "
                f"for {self.classes[label]!r} at {examples.name(int(row))}, and "
                f"{len(outside) - 1} more."
            )
        answer = sample_outputs.outputs(model, examples)
        if answer.shape[1:] != (count,):
            raise UserError(
                f"`model` must answer one logit for each of the {count} labels. "
                f"Received: an answer of shape {list(answer.shape[1:])}."
            )
        _, y = sample_outputs.few(examples, len(answer))
        measures.check(self.loss(), self.metrics(), y, answer)

    def per_example(self, x: tf.Tensor, y: tf.Tensor, outputs: tf.Tensor) -> dict[str, tf.Tensor]:
        """Computes `loss` (nats) [batch], `target`, `logit` and `chosen` [batch, classes]."""
        logits, loss = tf.cast(outputs, tf.float32), self.loss()
        if isinstance(loss, PositiveWeighted):
            loss = keras.losses.BinaryCrossentropy(from_logits=True)
        values = {
            "loss": measures.each(loss, y, outputs),
            "target": tf.cast(y, tf.bool),
            "logit": logits,
            "chosen": self._chosen(tf.sigmoid(logits)),
        }
        if self._metrics or type(self).metrics is not MultiLabel.metrics:
            values |= measures.kept(y, outputs)
        return values

    def _chosen(self, probabilities: tf.Tensor) -> tf.Tensor:
        return probabilities > tf.constant(self.thresholds, tf.float32)

    def _others(self) -> list[keras.metrics.Metric]:
        return measures.others(self.metrics(), self._own_metrics())

    def evaluate(self, per_example: dict[str, np.ndarray], examples: Examples) -> dict:
        """Returns `loss` (nats), `accuracy`, `exact` (the share of examples whose labels are all
        right), `macro_f1`, `micro_f1`, `mean_average_precision`, the metrics that were given, and
        `report`.

        The report holds precision, recall, F1, average precision and support (the number of its
        examples) for each label, the plain mean of these (`macro`), their mean by support
        (`weighted`), and precision, recall and F1 of all labels of all examples together (`micro`),
        as scikit-learn defines them; where a ratio has no denominator it is 0, and so is the
        average precision of a label that no example has.
        """
        target, chosen = per_example["target"], per_example["chosen"]
        precisions = [
            average_precision(target[:, label], per_example["logit"][:, label])
            for label in range(len(self.classes))
        ]
        scores = report(self.classes, target, chosen, precisions)
        return {
            "loss": float(per_example["loss"].mean(dtype=np.float64)),
            "accuracy": float((target == chosen).mean()),
            "exact": float((target == chosen).all(axis=1).mean()),
            "macro_f1": scores["macro"]["f1"],
            "micro_f1": scores["micro"]["f1"],
            "mean_average_precision": scores["macro"]["average_precision"],
            **measures.values(self._others(), per_example),
            "report": scores,
        }

    def signatures(self, model: keras.Model, examples: Examples) -> dict[str, Signature]:
        """Returns `serving_default`, and for images `image_bytes`.

        They take what `tfbp.tasks.inputs.of` says, arrays as `features`, and answer, for all labels
        in their order, [batch, classes]: `labels` (string: the name where the label is chosen, else
        ""), `classes` (string: all names), `probabilities` and `logits` (float32). For an image
        file that is no good these are "" and 0.
        """

        def choose(x: tf.Tensor) -> dict[str, tf.Tensor]:
            logits = tf.cast(model(x, training=False), tf.float32)
            chances = tf.sigmoid(logits)
            names = tf.constant(("", *self.classes))
            # Not the names themselves: other engines cannot broadcast strings.
            numbers = tf.broadcast_to(tf.range(len(self.classes)) + 1, tf.shape(logits))
            return {
                "labels": tf.gather(names, tf.where(self._chosen(chances), numbers, 0)),
                "classes": tf.gather(names, numbers),
                "probabilities": chances,
                "logits": logits,
            }

        taken = inputs.of(examples, array="features", largest_image=self.largest_image, model=model)
        return inputs.signatures(taken, choose, examples, bad=0.0)

    def assets(self) -> dict[str, str]:
        """Returns `labels.txt`: the names of the labels, one a line, in their order."""
        return {assets.LABELS: "".join(f"{name}\n" for name in self.classes)}


def _thresholds(given: float | Mapping[str, float], classes: Sequence[str]) -> tuple[float, ...]:
    by_name = given if isinstance(given, Mapping) else dict.fromkeys(classes, given)
    for name, threshold in by_name.items():
        if name not in classes:
            raise mistake("thresholds", "must name labels", name, classes)
        if isinstance(threshold, bool) or not isinstance(threshold, (int, float, np.number)):
            raise mistake("thresholds", "must be a number, or name → number", threshold)
        if not 0 < threshold < 1:
            raise mistake("thresholds", "must be above 0 and below 1", threshold)
    return tuple(float(by_name.get(name, 0.5)) for name in classes)


def _positive_weights(by_name: Mapping[str, float], classes: Sequence[str]) -> tuple[float, ...]:
    for name, weight in by_name.items():
        if name not in classes:
            raise mistake("positive_weights", "must name labels", name, classes)
        class_names.check_factor("positive_weights", name, weight)
    return tuple(float(by_name.get(name, 1)) for name in classes) if by_name else ()
