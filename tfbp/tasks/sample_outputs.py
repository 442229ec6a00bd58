"""A few examples: the outputs of a model for them, and the requests to an export."""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfbp.data import structures
from tfbp.data.examples import Batch, Examples
from tfbp.errors import UserError, mistake, reason
from tfbp.modeling import model_inputs

# Examples whose outputs are looked at, or all if there are fewer.
EXAMPLES = 8
# Edge of the largest images, in pixels, that are tried to say how large a model's must be.
_LARGEST = 512

# What `outputs` has computed: the model, its examples, and the outputs.
_known: contextvars.ContextVar[list[tuple[keras.Model, Examples, Any]] | None]
_known = contextvars.ContextVar("known", default=None)


@contextlib.contextmanager
def computed_once() -> Iterator[None]:
    """Within it, `outputs` calls a model once for the same examples; its values must not change."""
    before = _known.set([])
    try:
        yield
    finally:
        _known.reset(before)


def few(examples: Examples, count: int) -> Batch:
    """Returns (x, y), arrays or structures of them, of at most `count` examples, spread evenly over
    the set.
    """
    positions = np.unique(np.linspace(0, examples.size - 1, count).astype(np.int64))
    return _arrays(examples.read(tf.constant(positions)))


def exactly(examples: Examples, count: int) -> Any:
    """Returns x of `count` examples, spread evenly over the set; more than once if it is small."""
    positions = np.linspace(0, examples.size - 1, count).astype(np.int64)
    return _arrays(examples.read(tf.constant(positions))[0])


def _arrays(tensors: Any) -> Any:
    return structures.each(lambda tensor: tensor.numpy(), tensors)


def outputs(model: keras.Model, examples: Examples) -> Any:
    """Returns the model's outputs for the examples that `few` gives: an array [batch, …] or, where
    y is a structure, one of the same names.

    Raises:
        tfbp.UserError: the model does not take the examples, or has not one finite output for each
            target.
    """
    for called, given, answer in _known.get() or ():
        if called is model and given is examples:
            return answer
    return compute(model, examples)


def compute(model: keras.Model, examples: Examples) -> Any:
    """Calls the model, like `outputs`, also where its outputs are known already."""
    answer = _call(model, examples)
    known = _known.get()
    if known is not None:
        known.append((model, examples, answer))
    return answer


def _call(model: keras.Model, examples: Examples) -> Any:
    spec = examples.spec[0]
    model_inputs.matched(model, spec)
    refusal = _refusal(model, spec)
    if refusal:
        _check_size(model, spec)
        raise _unfit(spec, refusal)
    try:
        answer = model(few(examples, EXAMPLES)[0], training=False)
    except (TypeError, ValueError, tf.errors.OpError) as error:
        raise _unfit(spec, reason(error)) from error
    _check_names(answer, examples.targets)
    if not all(np.isfinite(each).all() for each in structures.leaves(answer).values()):
        raise UserError("`model` must answer finite numbers. Its weights give NaN or infinity.")
    return _arrays(answer)


def _refusal(model: keras.Model, spec: Any) -> str:
    """Returns why a model does not take examples of a type, by Keras's own rules; "" if it does.

    They come before the call: a pooling that is handed less than its window aborts, or answers an
    empty map, whose mean is NaN.
    """

    try:
        if structures.is_nested(spec):
            # Keras's rules are of a model's own structure, not of what it takes for that.
            call = tf.function(lambda x: model(x, training=False), autograph=False)
            call.get_concrete_function(structures.batched(spec))
        else:
            model.compute_output_spec(keras.KerasTensor((None, *spec.shape), spec.dtype.name))
    except (TypeError, ValueError) as error:
        return reason(error)
    return ""


def _check_size(model: keras.Model, spec: Any) -> None:
    """Refuses images that a model does not take and would take if they were larger."""
    if structures.is_nested(spec) or spec.shape.rank != 3:
        return
    *size, channels = spec.shape
    for edge in range(min(size) + 1, _LARGEST + 1):
        if not _refusal(model, tf.TensorSpec((edge, edge, channels), spec.dtype)):
            raise mistake("size", f"must be at least {edge} for {model.name!r}", tuple(size))


def _check_names(answer: Any, targets: Any) -> None:
    """Refuses outputs that are others than the targets."""
    if not structures.is_nested(targets):
        if not tf.is_tensor(answer):
            raise UserError(f"`model` must have one output. Received: {type(answer).__name__}.")
        return
    due, received = structures.leaves(targets), structures.leaves(answer)
    if due.keys() != received.keys():
        names = ", ".join(repr(structures.joined(path)) for path in due)
        got = ", ".join(repr(structures.joined(path)) for path in received)
        raise UserError(
            f"`model` must answer what `y` holds, by the same names: {names}. Received: "
            f"{got if any(received) else 'one output'}. A dict of outputs has names: "
            f"`keras.Model(inputs, {{{next(iter(due))[0]!r}: …}})`."
        )


def _unfit(spec: Any, why: str) -> UserError:
    return UserError(
        f"`model` must take the examples, which are {structures.described(spec)}. "
        f"It answered: {why}"
    )
