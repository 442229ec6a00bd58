"""A model's gradients against central finite differences of its loss, in float64."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tfbp.data import structures
from tfbp.errors import UserError, mistake, reason
from tfbp.gradients import recorder as gradient_recorder
from tfbp.modeling import keras_graph, paths
from tfbp.tasks import several
from tfbp.training import own_step

_EPSILON = float(np.finfo(np.float64).eps)
# Where the truncation error of a central difference, of order h², equals its rounding error, of
# order ε/h: Press et al. 2007, "Numerical Recipes", sec. 5.7.
_STEP = _EPSILON ** (1 / 3)
# A step across a kink (of a ReLU, of a maximum) misleads: on a difference smaller steps are tried.
_SHRINK = (1.0, 0.1, 0.01)
# Largest relative error of a correct gradient, by rounding.
RIGHT = 1e-4
# The denominator of a relative error is at least this times a difference quotient's rounding error.
_ABOVE_ROUNDING = 1e5


def check_gradients(
    model: keras.Model,
    batch: tuple,
    *,
    loss: keras.losses.Loss | None = None,
    entries: int = 32,
    seed: int = 0,
) -> dict[str, float]:
    """Compares a model's gradients with central finite differences of its loss, in float64.

    The gradients are those that the model's own `train_step` hands to its optimizer, so that a
    backward pass written by hand is checked too. The loss is `model.compute_loss` of its outputs in
    training mode, regularization included, with one draw of all dropout masks. During the check the
    model computes in float64; afterwards everything is as before.

    Args:
        model: a built model. If it is not compiled, it is compiled with `loss`, which must then be
            given. The gradients of its trainable variables are checked.
        batch: (x, y) or (x, y, weight), arrays as `train_step` takes them, x and y also dicts and
            tuples of them; few examples will do.
            weight: float32 [examples], or [examples, 1] for sequences of labels; default: ones.
        loss: of (y, outputs), for a model that is not compiled: `task.loss()`.
        entries: how many entries of each variable are compared at most: half of them those with the
            largest gradients, the others drawn at random. Each costs two forward passes or more.
        seed: of the draw.

    Returns:
        `<layer path>/<variable>` → the largest relative error of an entry: |g - d| / max(|g|, |d|),
        where d is the difference quotient; the denominator is at least 1e5 times the quotient's
        rounding error, some 4e-6 of the loss. Where the loss has a kink, any value between its
        slopes on both sides is correct. Errors of correct gradients stay below 1e-4 (`RIGHT`).

    Raises:
        tfbp.UserError: the model has no loss, or computes in float32 whatever the dtype of its
            layers and variables.
    """
    if model.compiled == (loss is not None):
        rule = "must be left out: the model is compiled" if loss else "must be given: it has none"
        raise mistake("loss", rule, loss)
    if entries < 1:
        raise mistake("entries", "must be at least 1", entries)
    if not model.compiled:
        model.compile(optimizer="sgd", **several.compiled(loss))
    generator = np.random.default_rng(seed)
    with _refusing("`batch` must be (x, y) or (x, y, weight), as `model` takes them."):
        weighed = "`batch` has weights" if len(batch) > 2 else ""
        x, y, weight = _tensors(*batch)
        with gradient_recorder.untouched(model):
            model.compute_loss(x, y, model(x, training=True), weight)  # which builds its losses
    with gradient_recorder.untouched(model), keras_graph.in_float64(model):
        x, y, weight = (_to_float64(part) for part in (x, y, weight))
        with _refusing("`model` must compute in the dtype of its variables, for float64."):
            gradients = _gradients(model, x, y, weight, weighed)  # with the current random seeds,
            compute_loss = _loss(model, x, y, weight)  # as each loss
            middle = compute_loss()
        errors = {}
        for (name, variable), gradient in zip(_names(model).items(), gradients, strict=True):
            gradient = gradient.numpy()
            chosen = _chosen(gradient, entries, generator)
            errors[name] = max(
                float(_error(variable.value, gradient[index], index, compute_loss, middle))
                for index in chosen
            )
    return errors


@contextlib.contextmanager
def _refusing(rule: str) -> Iterator[None]:
    try:
        yield
    except (TypeError, ValueError, tf.errors.InvalidArgumentError) as error:
        why = reason(error)
        raise UserError(f"{rule} It answered: {why}") from error


def _tensors(x: Any, y: Any, weight: npt.ArrayLike | None = None) -> tuple[Any, Any, Any]:
    def tensor(path: structures.Path, array: Any) -> tf.Tensor:
        return tf.convert_to_tensor(array)

    def ones(labels: tf.Tensor) -> tf.Tensor:
        inner = labels.shape.rank - (1 if labels.dtype.is_integer else 2)
        return tf.ones([labels.shape[0]] + [1] * max(inner, 0))

    x, y = structures.of_user("x", x, tensor), structures.of_user("y", y, tensor)
    given = weight is not None
    return x, y, tf.convert_to_tensor(weight, tf.float32) if given else structures.each(ones, y)


def _to_float64(tensors: Any) -> Any:
    return structures.each(
        lambda each: tf.cast(each, tf.float64) if each.dtype.is_floating else each, tensors
    )


def _loss(model: keras.Model, x: Any, y: Any, weight: Any) -> Callable[[], float]:
    """Returns a function that computes the loss of the current weights, with the same seeds."""
    start = [(each.value, tf.identity(each.value)) for each in model.non_trainable_variables]

    @tf.function(autograph=False)
    def loss() -> tf.Tensor:
        for variable, value in start:
            variable.assign(value)
        return model.compute_loss(x, y, model(x, training=True), weight)

    return lambda: float(loss())


def _gradients(model: keras.Model, x: Any, y: Any, weight: Any, weighed: str) -> list[tf.Tensor]:
    with gradient_recorder.untouched(model), gradient_recorder.recording(model) as recorder:
        own_step.take(model, x, y, weight, weighed=weighed)
        return recorder.take()


def _names(model: keras.Model) -> dict[str, keras.Variable]:
    """Returns the trainable variables by `<layer path>/<variable>`, in their order."""
    names = {}
    for path, layer in paths.with_weights(model).items():
        for variable in layer.variables:
            rest = variable.path.rpartition(f"{layer.name}/")[2]
            names[id(variable)] = f"{path}/{rest}"
    return {names[id(variable)]: variable for variable in model.trainable_variables}


def _chosen(gradient: np.ndarray, entries: int, generator: np.random.Generator) -> list[tuple]:
    """Returns the indices of a variable's entries that are compared."""
    order = np.argsort(-np.abs(gradient).ravel(), kind="stable")
    half = -(-entries // 2)
    chosen = [*order[:half], *generator.permutation(order[half:])[: entries - half]]
    return [np.unravel_index(index, gradient.shape) for index in chosen]


def _error(
    value: tf.Variable,
    gradient: float,
    index: tuple,
    compute_loss: Callable[[], float],
    middle: float,
) -> float:
    """Returns the relative error of one entry's gradient; `middle` is the unchanged loss."""
    start, least = value.numpy()[index], np.inf
    rounding = _ABOVE_ROUNDING * _EPSILON * abs(middle) / _STEP
    for shrink in _SHRINK:
        step = _STEP * shrink * max(1.0, abs(start))
        high, low = start + step, start - step
        up, down = (_loss_with_entry(value, index, entry, compute_loss) for entry in (high, low))
        quotient = (up - down) / (high - low)
        scale = max(abs(gradient), abs(quotient), rounding, np.finfo(np.float64).tiny)
        least = min(least, abs(gradient - quotient) / scale)
        if least <= RIGHT:
            return least
    sides = sorted([(up - middle) / (high - start), (middle - down) / (start - low)])
    return min(least, max(sides[0] - gradient, gradient - sides[1], 0.0) / scale)


def _loss_with_entry(
    value: tf.Variable, index: tuple, entry: float, compute_loss: Callable[[], float]
) -> float:
    """Returns the loss with one entry of a variable changed, and changes it back."""
    before = tf.identity(value)
    if index:
        value.scatter_nd_update([index], [entry])
    else:
        value.assign(entry)
    result = compute_loss()
    value.assign(before)
    return result
