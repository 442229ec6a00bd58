"""What is an array, or becomes one, and what only looks like it."""

from collections.abc import Iterator, Set
from typing import Any

import numpy as np
import tensorflow as tf

from tfbp.errors import UserError


def check(argument: str, values: Any) -> None:
    """Checks that NumPy can take values for an array, apart from lists of rows that differ.

    Raises:
        tfbp.UserError: they are ragged, sparse, without order, gone once they are read, or nothing.
    """
    way_out = None
    if isinstance(values, tf.RaggedTensor):
        way_out = "Pad it: `.to_tensor()`"
    elif isinstance(values, tf.SparseTensor):
        way_out = "Make it dense: `tf.sparse.to_dense(…)`"
    elif hasattr(values, "tocsr"):
        way_out = "Make it dense: `.toarray()`"
    elif isinstance(values, tf.data.Dataset):
        way_out = "Datasets of pairs go to `Splits.from_dataset`"
    elif isinstance(values, Iterator | Set):
        way_out = "Make it a list, in the order of the examples"
    elif values is None:
        way_out = "Nothing was given"
    if way_out is not None:
        kind = type(values).__name__
        raise UserError(f"`{argument}` must be an array. Received: {kind}. {way_out}.")


def array(argument: str, values: Any) -> np.ndarray:
    """Makes values an array.

    Raises:
        tfbp.UserError: as `check`, or the rows of a list differ in shape.
    """
    check(argument, values)
    try:
        return np.asarray(values)
    except ValueError:
        first, *others = map(_length, values)
        row = next((row for row, length in enumerate(others, 1) if length != first), 0)
        raise UserError(
            f"`{argument}` must have rows of one shape. Received: {values[row]!r} in row {row}, "
            f"after {values[0]!r} in row 0."
        ) from None


def _length(row: Any) -> int | None:
    return len(row) if hasattr(row, "__len__") and not isinstance(row, str | bytes) else None
