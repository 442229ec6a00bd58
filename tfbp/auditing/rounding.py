"""Whether the model's input would round the whole numbers that it is given."""

from collections.abc import Iterator

import keras
import numpy as np
import tensorflow as tf

from tfbp.data.splits import Splits
from tfbp.finding import Finding


def findings(model: keras.Model, splits: Splits) -> Iterator[Finding]:
    """Yields `rounded-input`: Keras casts what it is given to the type of the model's input."""
    spec, inputs = splits.train.spec[0], getattr(model, "inputs", None) or []
    if not spec.dtype.is_integer or not splits.train.in_memory or len(inputs) != 1:
        return
    taken = tf.as_dtype(keras.backend.standardize_dtype(inputs[0].dtype))
    if taken.is_integer:
        return
    x, _ = splits.train.read(tf.range(splits.train.size))
    rounded = np.asarray(tf.cast(tf.cast(x, taken), x.dtype) != x)
    rows = np.flatnonzero(rounded.reshape(len(rounded), -1).any(axis=1))
    if not len(rows):
        return
    first = int(rows[0])
    value = x.numpy()[first][rounded[first]].flat[0]
    yield Finding(
        "rounded-input",
        f"`{inputs[0].name}` takes {taken.name}, which rounds the whole numbers of {len(rows)} of "
        f"the {splits.train.size} training examples: {value} at {splits.train.name(first)} becomes "
        f"{int(tf.cast(tf.cast(value, taken), tf.float64))}. Subtract the smallest value from them "
        "all, or scale them; ids that are looked up are taken whole by "
        f"`keras.Input(…, dtype={spec.dtype.name!r})`.",
    )
