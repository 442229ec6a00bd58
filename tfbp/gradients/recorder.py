"""The gradient that a model's own `train_step` hands to its optimizer, without the update.

with recorder.untouched(model), recorder.recording(model) as recording:
    model.train_step((x, y, weight))
    gradients = recording.take()  # one for each of model.trainable_variables
"""

import contextlib
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf


class Recorder:
    """Stands in for a model's optimizer: keeps the gradients that it gets, and updates nothing.

    All other attributes are the optimizer's.

    Args:
        model: a compiled model.
    """

    def __init__(self, model: keras.Model):
        self.optimizer, self._variables = model.optimizer, model.trainable_variables
        # tf.distribute traces each replica in a thread of its own, and switches between them.
        self._local = threading.local()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.optimizer, name)

    def scale_loss(self, loss: tf.Tensor) -> tf.Tensor:
        self._local.scale = self.optimizer.scale_loss(tf.ones_like(loss))
        return self.optimizer.scale_loss(loss)

    def apply_gradients(self, grads_and_vars: Iterable[tuple]) -> None:
        gradients, variables = zip(*grads_and_vars, strict=True)
        self.apply(gradients, variables)

    def apply(
        self,
        grads: Sequence[tf.Tensor | None],
        trainable_variables: Sequence[keras.Variable] | None = None,
    ) -> None:
        variables = trainable_variables or self._variables
        scale = vars(self._local).pop("scale", 1.0)
        recorded = vars(self._local).setdefault("recorded", {})
        for gradient, variable in zip(grads, variables, strict=True):
            if gradient is not None:
                gradient = tf.convert_to_tensor(gradient)  # an embedding's is a list of rows
                recorded[id(variable)] = gradient / tf.cast(scale, gradient.dtype)

    def take(self) -> list[tf.Tensor]:
        """Returns the gradients of the model's trainable variables, zeros for those that got none,
        and forgets them.
        """
        recorded = vars(self._local).pop("recorded", {})
        return [recorded.get(id(v), tf.zeros(v.shape, v.dtype)) for v in self._variables]


@contextlib.contextmanager
def recording(model: keras.Model) -> Iterator[Recorder]:
    """Within it, the optimizer of a compiled model is the `Recorder` that it yields."""
    recorder = Recorder(model)
    model.optimizer = recorder
    try:
        yield recorder
    finally:
        model.optimizer = recorder.optimizer


@contextlib.contextmanager
def untouched(model: keras.Model, strategy: tf.distribute.Strategy | None = None) -> Iterator[None]:
    """Restores all variables of a model and of its metrics, bit for bit, when the block ends.

    These are weights, statistics and random seeds, each replica's own. Nothing is copied unless it
    changes in between: TensorFlow's variables are copied on write.
    """
    strategy = strategy or tf.distribute.get_strategy()
    held = [
        (part, tf.identity(part))
        for variable in [*model.variables, *model.metrics_variables]
        for part in strategy.experimental_local_results(variable.value)
    ]
    try:
        yield
    finally:
        for part, value in held:
            part.assign(value)
