"""One label for each example, out of a list of names."""

from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from tfbp.data.examples import Examples
from tfbp.errors import UserError, mistake
from tfbp.tasks import probe
from tfbp.tasks.task import Signature


class Classification:
    """Classification by softmax cross-entropy: labels int64 [], logits float32 [classes].

    Args:
        classes: the names, in label order.

    Raises:
        tfbp.UserError: fewer than two names, or one twice.
    """

    def __init__(self, classes: Sequence[str]):
        if classes is None:
            raise UserError(
                "`classes` must be at least two different names. There are none: the data has "
                "values to predict, not labels."
            )
        self.classes = tuple(classes)
        if len(self.classes) < 2 or len(set(self.classes)) < len(self.classes):
            raise mistake("classes", "must be at least two different names", classes)

    def loss(self) -> keras.losses.Loss:
        """Returns the cross-entropy, in nats, from logits."""
        return keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def metrics(self) -> list[keras.metrics.Metric]:
        """Returns the share of examples whose largest logit is that of their label."""
        return [keras.metrics.SparseCategoricalAccuracy(name="accuracy")]

    def check(self, model: keras.Model, examples: Examples) -> None:
        """Refuses a model that does not answer one logit for each class, and labels outside them.

        Raises:
            tfbp.UserError: says what does not fit.
        """
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
        answer = probe.outputs(model, examples)
        if answer.ndim != 2 or answer.shape[1] != len(self.classes):
            raise UserError(
                f"`model` must answer one logit for each of the {len(self.classes)} classes. "
                f"Received: an answer of shape {list(answer.shape[1:])}."
            )
        probe.check_logits(answer)

    def measure(self, x: tf.Tensor, y: tf.Tensor, outputs: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns `loss` (nats), `label` and `predicted` of each example: [batch]."""
        logits = tf.cast(outputs, tf.float32)
        return {
            "loss": tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits),
            "label": y,
            "predicted": tf.argmax(logits, axis=-1),
        }

    def evaluate(self, measured: dict[str, np.ndarray], examples: Examples) -> dict:
        """Returns `loss` (nats), `accuracy` and `report`.

        The report holds precision, recall and F1 for each class (with its support, the number of
        its examples), their plain mean (`macro`) and their mean by support (`weighted`), as
        scikit-learn defines them; where a ratio has no denominator it is 0.
        """
        size = len(self.classes)
        pairs = measured["label"] * size + measured["predicted"]
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
            "loss": float(measured["loss"].mean(dtype=np.float64)),
            "accuracy": float(right.sum() / support.sum()),
            "report": {
                "per_class": per_class,
                "macro": {score: float(values.mean()) for score, values in scores.items()},
                "weighted": weighted,
            },
        }

    def signatures(self, model: keras.Model, examples: Examples) -> dict[str, Signature]:
        """Returns `serving_default`.

        It takes `image` (float32 [batch, height, width, channels], 0 to 255) or, for vectors,
        `features` (float32 [batch, features]), and answers, best guess first, `class` (string
        [batch]) and `probability` (float32 [batch]), then for all classes in label order `classes`
        (string), `probabilities` and `logits` (float32 [batch, classes]).
        """
        spec, _ = examples.spec
        name = _input_name(examples)

        def classify(**inputs):
            logits = tf.cast(model(inputs[name], training=False), tf.float32)
            probabilities = tf.nn.softmax(logits)
            names = tf.constant(self.classes)
            return {
                "class": tf.gather(names, tf.argmax(logits, axis=-1)),
                "probability": tf.reduce_max(probabilities, axis=-1),
                "classes": tf.broadcast_to(names, tf.shape(logits)),
                "probabilities": probabilities,
                "logits": logits,
            }

        inputs = {name: tf.TensorSpec([None, *spec.shape], spec.dtype)}
        return {"serving_default": Signature(classify, inputs)}

    def samples(self, examples: Examples, count: int) -> dict[str, dict[str, np.ndarray]]:
        """Returns one request of at most `count` examples, spread over the set."""
        x, _ = probe.few(examples, count)
        return {"serving_default": {_input_name(examples): x}}

    def assets(self) -> dict[str, str]:
        """Returns `labels.txt`: the class names, one a line, in label order."""
        return {"labels.txt": "".join(f"{name}\n" for name in self.classes)}


def _input_name(examples: Examples) -> str:
    return "image" if examples.spec[0].shape.rank == 3 else "features"


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.zeros(len(part)), where=whole > 0)
