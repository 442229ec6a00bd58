"""The effect of one batch on a model, trained as in a phase; nothing of it is kept."""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfbp.data import structures
from tfbp.data.splits import Splits
from tfbp.modeling import keras_graph
from tfbp.modeling.freezing import Frozen
from tfbp.tasks import sample_outputs
from tfbp.tasks.task import Task

# The id of a variable → its gradient, where there is one.
Gradients = dict[int, np.ndarray]
# Path of a layer → its variables that learn.
Learning = dict[str, list[keras.Variable]]

EXAMPLES = 16
# float16 holds no gradients below 6e-8: losses are scaled (Micikevicius et al. 2018, sec. 3.2).
_FLOAT16_SCALE = 128.0


@dataclasses.dataclass(frozen=True)
class Effect:
    """The effect of one batch on a model in a phase.

    A model with a `train_step` or `compute_loss` of its own makes its gradients itself: those of
    the tape are not shown.

    Attributes:
        loss: the mean loss of the batch, with the model's own losses.
        norms: (path, name, norm of the gradient) of each learning variable; None: no gradient.
        dead: paths whose gradient is zero, and stays zero when the other layers learn.
        moved: paths of frozen layers that changed.
    """

    loss: float
    norms: tuple[tuple[str, str, float | None], ...]
    dead: tuple[str, ...]
    moved: tuple[str, ...]


@contextlib.contextmanager
def untouched(model: keras.Model) -> Iterator[None]:
    """Leaves the values of all variables, random seeds too, and what is trainable as they were."""
    layers = [(layer, layer.trainable) for layer in keras_graph.all_layers(model)]
    variables = [(each, each.trainable, _value(each)) for each in model.variables]
    try:
        yield
    finally:
        for layer, trainable in layers:  # the outer ones first, since they set those inside
            layer.trainable = trainable
        for variable, trainable, value in variables:
            variable.trainable = trainable
            variable.assign(value)


def run(model: keras.Model, splits: Splits, task: Task, frozen: Frozen) -> Effect:
    """Trains a model, which is frozen for a phase, on one batch of at most 16 examples.

    It changes the model: call it inside `untouched`.
    """
    before = {path: _values(layer) for path, layer in frozen.frozen.items()}
    learning = {path: variables for path, variables in frozen.learning.items() if variables}
    if not _plain(model):
        learning = {}
    step = _Step(model, task, *sample_outputs.few(splits.train, EXAMPLES))
    loss, gradients = step()
    moved = [path for path, layer in frozen.frozen.items() if _differ(before[path], layer)]
    norms = [
        (path, variable.name, _norm(gradients.get(id(variable))))
        for path, variables in learning.items()
        for variable in variables
    ]
    return Effect(loss, tuple(norms), _dead(step, learning, gradients), tuple(moved))


def _plain(model: keras.Model) -> bool:
    kind = type(model)
    return (
        kind.train_step is keras.Model.train_step and kind.compute_loss is keras.Model.compute_loss
    )


class _Step:
    """The loss and the gradients of one batch, computed anew at each call."""

    def __init__(self, model: keras.Model, task: Task, x: Any, y: Any):
        self._model, self._loss = model, task.loss()
        self._batch = structures.each(tf.constant, (x, y))
        self._variables = model.trainable_variables
        half = any(layer.compute_dtype == "float16" for layer in keras_graph.all_layers(model))
        self._scale = _FLOAT16_SCALE if half else 1.0
        self._strategy = model.distribute_strategy
        self._on_replica = self._gradients
        if self._strategy.num_replicas_in_sync > 1:
            # Replicas run in a graph; for one it would only take longer.
            self._on_replica = tf.function(self._gradients, autograph=False)

    def __call__(self) -> tuple[float, Gradients]:
        loss, gradients = self._strategy.run(self._on_replica, args=self._batch)
        return float(self._first(loss)), {
            id(self._variables[number]): self._first(each) for number, each in gradients.items()
        }

    def _gradients(self, x: Any, y: Any) -> tuple[tf.Tensor, dict[int, tf.Tensor]]:
        # Keras freezes its variables, not TensorFlow's, which a tape would follow all the way down.
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([variable.value for variable in self._variables])
            # Each replica gets the whole batch, and Keras divides its mean by their number.
            loss = self._strategy.num_replicas_in_sync * self._loss(
                y, self._model(x, training=True)
            )
            loss += sum(tf.cast(each, loss.dtype) for each in self._model.losses)
            scaled = self._scale * loss
        gradients = tape.gradient(scaled, [variable.value for variable in self._variables])
        return loss, {
            number: tf.convert_to_tensor(gradient) / self._scale
            for number, gradient in enumerate(gradients)
            if gradient is not None
        }

    def _first(self, value: Any) -> np.ndarray:
        return self._strategy.experimental_local_results(value)[0].numpy()


def _dead(step: _Step, learning: Learning, gradients: Gradients) -> tuple[str, ...]:
    """Returns the paths whose gradients are zero, and not only because of a start at zero.

    Behind weights that start at zero (LoRA's second factor, a head, the last gamma of a residual
    branch) the first gradient is zero: the other layers take small steps for as long as more
    layers come alive.
    """
    variables = [variable for each in learning.values() for variable in each]
    dead = _zero(learning, gradients)
    while dead:
        for variable in variables:
            gradient = gradients.get(id(variable))
            if gradient is not None and np.isfinite(gradient).all() and gradient.any():
                variable.assign_sub(0.01 * gradient / np.abs(gradient).max())
        _, gradients = step()
        still = [path for path in _zero(learning, gradients) if path in dead]
        if still == dead:
            break
        dead = still
    return tuple(dead)


def _zero(learning: Learning, gradients: Gradients) -> list[str]:
    return [
        path
        for path, variables in learning.items()
        if all(id(v) in gradients and not gradients[id(v)].any() for v in variables)
    ]


def _norm(gradient: np.ndarray | None) -> float | None:
    return None if gradient is None else float(np.linalg.norm(gradient.astype(np.float64)))


def _value(variable: keras.Variable) -> tf.Tensor:
    """Returns the value of a variable. Nothing is copied unless the variable changes."""
    return tf.convert_to_tensor(variable.value)


def _values(layer: keras.layers.Layer) -> list[tf.Tensor]:
    return [_value(variable) for variable in layer.weights]


def _differ(before: Sequence[tf.Tensor], layer: keras.layers.Layer) -> bool:
    return not all(_equal(old, new) for old, new in zip(before, _values(layer), strict=True))


def _equal(old: tf.Tensor, new: tf.Tensor) -> bool:
    old, new = np.asarray(old), np.asarray(new)
    # Looking for NaN takes fifty times as long.
    return np.array_equal(old, new) or np.array_equal(old, new, equal_nan=True)
