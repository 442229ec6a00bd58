"""Arrays as users hand them in: checked, and brought to the types that examples have."""

from collections.abc import Sequence

import numpy as np

from tfbp.data import labels, precision
from tfbp.data.numbers import check_finite, numbers
from tfbp.errors import mistake


def inputs(x: object, names: Sequence[str] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Checks `x`, and brings it to the type that models are given it in: see `precision.narrow`.

    Args:
        x: numbers or booleans [size, …]; numbers [size] become vectors [size, 1].
        names: of the columns, for an error.

    Returns:
        What the model is given, and what was given: arrays [size, …]. Identity is of the latter.

    Raises:
        tfbp.UserError: not numbers, no examples, a value that is missing or infinite, or numbers
            that would be rounded until they are equal.
    """
    given = numbers("x", x)
    check_finite("x", given, names)
    narrowed = precision.narrow("x", given, names)
    if given.ndim == 1:
        given, narrowed = given[:, np.newaxis], narrowed[:, np.newaxis]
    return narrowed, given


def targets(y: object) -> np.ndarray:
    """Makes `y` labels, int64 [size] (from whole numbers), or values, float32 [size, k].

    Raises:
        tfbp.UserError: not numbers, no examples, another shape, a value that is missing, infinite
            or would be rounded until it equals others.
    """
    y = numbers("y", labels.refuse_missing(y))
    if np.issubdtype(y.dtype, np.floating):
        if y.ndim > 2:
            raise mistake("y", "must have the shape [size] or [size, values]", y.shape)
        check_finite("y", y)
        return precision.narrow("y", y).reshape(len(y), -1)
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1:
        raise mistake("y", "must be labels of the shape [size], or one-hot rows", y.shape)
    if y.dtype.kind == "u" and y.max() > np.iinfo(np.int64).max:
        raise mistake("y", "must be labels that int64 holds, below 2^63", int(y.max()))
    return y.astype(np.int64)


def weights(values: object, size: int) -> np.ndarray:
    """Makes the weights of examples float32 [size].

    Raises:
        tfbp.UserError: not numbers, another shape, one is missing, infinite or negative, or all
            are 0.
    """
    array = numbers("weights", values)
    check_finite("weights", array)
    if array.shape not in ((size,), (size, 1)):
        raise mistake("weights", f"must be one for each of the {size} examples", array.shape)
    array = precision.narrow("weights", array).astype(np.float32).reshape(size)
    if (array < 0).any():
        row = int(np.flatnonzero(array < 0)[0])
        raise mistake("weights", f"must be at least 0 (row {row})", float(array[row]))
    if not array.any():
        raise mistake("weights", "must not all be 0", 0.0)
    return array


def check_names(argument: str, names: Sequence[str] | None, rows: np.ndarray) -> None:
    """Checks that names, if there are any, are one for each entry of the rows, [size, entries].

    Raises:
        tfbp.UserError: they are more or fewer, or rows are no vectors.
    """
    if names is not None and (len(names),) != rows.shape[1:]:
        rule = f"must be one name for each entry of a row, whose shape is {list(rows.shape[1:])}"
        raise mistake(argument, rule, list(names))
