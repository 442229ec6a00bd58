"""A few examples: the outputs of a model for them, and the requests to an export."""

import contextlib
import contextvars
from collections.abc import Iterator

import keras
import numpy as np
import tensorflow as tf

from tfbp.data.examples import Examples
from tfbp.errors import UserError, mistake, reason

# Examples whose outputs are looked at, or all if there are fewer.
EXAMPLES = 8
# Edge of the largest images, in pixels, that are tried to say how large a model's must be.
_LARGEST = 512

# What `outputs` has computed: the model, its examples, and the outputs.
_known: contextvars.ContextVar[list[tuple[keras.Model, Examples, np.ndarray]] | None]
_known = contextvars.ContextVar("known", default=None)


@contextlib.contextmanager
def computed_once() -> Iterator[None]:
    """Within it, `outputs` calls a model once for the same examples; its values must not change."""
    before = _known.set([])
    try:
        yield
    finally:
        _known.reset(before)


def few(examples: Examples, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns (x, y) of at most `count` examples, spread evenly over the set."""
    positions = np.unique(np.linspace(0, examples.size - 1, count).astype(np.int64))
    x, y = examples.read(tf.constant(positions))
    return x.numpy(), y.numpy()


def exactly(examples: Examples, count: int) -> np.ndarray:
    """Returns x of `count` examples, spread evenly over the set; more than once if it is small."""
    positions = np.linspace(0, examples.size - 1, count).astype(np.int64)
    return examples.read(tf.constant(positions))[0].numpy()


def outputs(model: keras.Model, examples: Examples) -> np.ndarray:
    """Returns the model's outputs for the examples that `few` gives: an array [batch, …].

    Raises:
        tfbp.UserError: the model does not take the examples, or has not one finite output.
    """
    for called, given, answer in _known.get() or ():
        if called is model and given is examples:
            return answer
    return compute(model, examples)


def compute(model: keras.Model, examples: Examples) -> np.ndarray:
    """Calls the model, like `outputs`, also where its outputs are known already."""
    answer = _call(model, few(examples, EXAMPLES)[0])
    known = _known.get()
    if known is not None:
        known.append((model, examples, answer))
    return answer


def _call(model: keras.Model, x: np.ndarray) -> np.ndarray:
    refusal = _refusal(model, x.shape[1:], x.dtype)
    if refusal:
        _check_size(model, x)
        raise _unfit(x, refusal)
    try:
        answer = model(x, training=False)
    except (ValueError, tf.errors.InvalidArgumentError) as error:
        raise _unfit(x, reason(error)) from error
    if not tf.is_tensor(answer):
        raise UserError(f"`model` must have one output. Received: {type(answer).__name__}.")
    if not np.isfinite(answer).all():
        raise UserError("`model` must answer finite numbers. Its weights give NaN or infinity.")
    return answer.numpy()


def _refusal(model: keras.Model, shape: tuple[int, ...], dtype: np.dtype) -> str:
    """Returns why a model does not take examples of a shape, by Keras's own rules; "" if it does.

    They come before the call: a pooling that is handed less than its window aborts, or answers an
    empty map, whose mean is NaN.
    """
    try:
        model.compute_output_spec(keras.KerasTensor((None, *shape), dtype.name))
    except ValueError as error:
        return reason(error)
    return ""


def _check_size(model: keras.Model, x: np.ndarray) -> None:
    """Refuses images that a model does not take and would take if they were larger."""
    if x.ndim != 4:
        return
    *size, channels = x.shape[1:]
    for edge in range(min(size) + 1, _LARGEST + 1):
        if not _refusal(model, (edge, edge, channels), x.dtype):
            raise mistake("size", f"must be at least {edge} for {model.name!r}", tuple(size))


def _unfit(x: np.ndarray, why: str) -> UserError:
    return UserError(
        f"`model` must take the examples, which are {x.dtype} {list(x.shape[1:])}. "
        f"It answered: {why}"
    )
