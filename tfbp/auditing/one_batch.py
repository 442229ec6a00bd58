"""One batch through a model as a phase would train it, and what that does; nothing is kept."""

import contextlib
import dataclasses
from collections.abc import Iterator

import keras
import numpy as np
import tensorflow as tf

from tfbp.data.splits import Splits
from tfbp.modeling import keras_graph
from tfbp.modeling.freezing import Frozen
from tfbp.tasks import sample_outputs
from tfbp.tasks.task import Task

EXAMPLES = 16
# float16 holds no gradients below 6e-8: losses are scaled (Micikevicius et al. 2018, sec. 3.2).
_FLOAT16_SCALE = 128.0


@dataclasses.dataclass(frozen=True)
class Trial:
    """What one batch does to a model in a phase.

    A model with a `train_step` or `compute_loss` of its own makes its gradients itself: what the
    tape says of them is not shown.

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


def run(model: keras.Model, splits: Splits, task: Task, frozen: Frozen) -> Trial:
    """Returns what a batch of at most 16 examples does to a model that is frozen for a phase.

    It changes the model: call it inside `untouched`.
    """
    before = {path: _values(layer) for path, layer in frozen.frozen.items()}
    learning = {path: found for path, found in frozen.learning.items() if found}
    if not _plain(model):
        learning = {}
    step = _step(model, task, *sample_outputs.few(splits.train, EXAMPLES))
    loss, gradients = step()
    moved = [path for path, layer in frozen.frozen.items() if _differ(before[path], layer)]
    norms = [
        (path, variable.name, _norm(gradients.get(id(variable))))
        for path, found in learning.items()
        for variable in found
    ]
    return Trial(loss, tuple(norms), _dead(step, learning, gradients), tuple(moved))


def _plain(model: keras.Model) -> bool:
    kind = type(model)
    return (
        kind.train_step is keras.Model.train_step and kind.compute_loss is keras.Model.compute_loss
    )


def _step(model, task, x, y):
    """Returns a function that gives (loss, id of a variable → its gradient, where there is one)."""
    strategy = model.distribute_strategy
    variables = model.trainable_variables
    loss_of = task.loss()
    half = any(layer.compute_dtype == "float16" for layer in keras_graph.all_layers(model))
    scale = _FLOAT16_SCALE if half else 1.0

    def one(x, y):
        # Keras freezes its variables, not TensorFlow's, which a tape would follow all the way down.
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([variable.value for variable in variables])
            # Each replica gets the whole batch, and Keras divides its mean by their number.
            loss = strategy.num_replicas_in_sync * loss_of(y, model(x, training=True))
            loss += sum(tf.cast(each, loss.dtype) for each in model.losses)
            scaled = scale * loss
        found = tape.gradient(scaled, [variable.value for variable in variables])
        present = {i: gradient for i, gradient in enumerate(found) if gradient is not None}
        return loss, {i: tf.convert_to_tensor(each) / scale for i, each in present.items()}

    if strategy.num_replicas_in_sync > 1:
        one = tf.function(one)  # replicas run in a graph; for one it would only take longer

    def first(value):
        return strategy.experimental_local_results(value)[0].numpy()

    def step():
        loss, found = strategy.run(one, args=(tf.constant(x), tf.constant(y)))
        return float(first(loss)), {id(variables[i]): first(each) for i, each in found.items()}

    return step


def _dead(step, learning, gradients) -> tuple[str, ...]:
    """Returns the paths whose gradients are zero, and not only because of a start at zero.

    Behind weights that start at zero (LoRA's second factor, a head, the last gamma of a residual
    branch) the first gradient is zero: the other layers take small steps for as long as more
    layers come alive.
    """
    variables = [variable for found in learning.values() for variable in found]
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


def _zero(learning, gradients) -> list[str]:
    return [
        path
        for path, found in learning.items()
        if all(id(v) in gradients and not gradients[id(v)].any() for v in found)
    ]


def _norm(gradient: np.ndarray | None) -> float | None:
    return None if gradient is None else float(np.linalg.norm(gradient.astype(np.float64)))


def _value(variable: keras.Variable) -> tf.Tensor:
    """Returns what a variable holds now. Nothing is copied unless the variable changes."""
    return tf.convert_to_tensor(variable.value)


def _values(layer):
    return [_value(variable) for variable in layer.weights]


def _differ(before, layer) -> bool:
    return not all(_equal(old, new) for old, new in zip(before, _values(layer), strict=True))


def _equal(old: tf.Tensor, new: tf.Tensor) -> bool:
    old, new = np.asarray(old), np.asarray(new)
    # Looking for NaN takes fifty times as long.
    return np.array_equal(old, new) or np.array_equal(old, new, equal_nan=True)
