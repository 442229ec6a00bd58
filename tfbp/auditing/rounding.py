"""Whether the model's inputs would round, or cut off, the numbers that they are given."""

from collections.abc import Iterator

import keras
import numpy as np
import tensorflow as tf

from tfbp.data import structures
from tfbp.data.examples import Examples
from tfbp.data.splits import Splits
from tfbp.finding import Finding
from tfbp.modeling import model_inputs


def findings(model: keras.Model, splits: Splits) -> Iterator[Finding]:
    """Yields `rounded-input`: Keras casts what it is given to the type of the model's input."""
    specs = structures.leaves(splits.train.spec[0])
    taken = {
        path: tensor
        for path, tensor in model_inputs.matched(model, splits.train.spec[0]).items()
        if specs[path].dtype != tf.as_dtype(tensor.dtype)
        and (specs[path].dtype.is_integer or specs[path].dtype.is_floating)
        and not (specs[path].dtype.is_floating and tf.as_dtype(tensor.dtype).is_floating)
    }
    if not taken or not splits.train.in_memory:
        return
    x = structures.leaves(splits.train.read(tf.range(splits.train.size))[0])
    for path, tensor in taken.items():
        yield from _rounded(splits.train, x[path], tensor)


def _rounded(train: Examples, x: tf.Tensor, tensor: keras.KerasTensor) -> Iterator[Finding]:
    taken = tf.as_dtype(keras.backend.standardize_dtype(tensor.dtype))
    rounded = np.asarray(tf.cast(tf.cast(x, taken), x.dtype) != x)
    if taken.is_integer:  # what is beyond its range may come back by chance
        exact = x.numpy() if x.dtype.is_integer else x.numpy().astype(np.float64)
        beyond = (exact < taken.min) | (exact > taken.max)
        rounded = rounded | beyond
    rows = np.flatnonzero(rounded.reshape(len(rounded), -1).any(axis=1))
    if not len(rows):
        return
    first = int(rows[0])
    value = x.numpy()[first][rounded[first]].flat[0]
    does, due = "rounds the fractions", x.dtype.name
    remedy = "Give whole numbers, or take them"
    if taken.is_integer and beyond.any():
        does, due = "cannot hold the whole numbers", "int64"
        remedy = "Number them from 0, or take them"
    elif x.dtype.is_integer:
        does = "rounds the whole numbers"
        remedy = (
            "Subtract the smallest value from them all, or scale them; ids that are looked up are "
            "taken whole"
        )
    yield Finding(
        "rounded-input",
        f"`{tensor.name}` takes {taken.name}, which {does} of {len(rows)} of "
        f"the {train.size} training examples: {value} at {train.name(first)} becomes "
        f"{int(tf.cast(tf.cast(value, taken), tf.float64))}. {remedy} by "
        f"`keras.Input(…, dtype={due!r})`.",
    )
