"""Arrays as users hand them in: checked, and brought to the types that examples have."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfbp.data import array_like, labels, precision, strings, structures
from tfbp.data.numbers import check_finite, numbers
from tfbp.data.structures import Path
from tfbp.errors import mistake


def inputs(x: object, names: Sequence[str] | None = None) -> tuple[Any, Any]:
    """Checks `x`, and brings it to the types that models are given it in.

    Args:
        x: numbers, booleans or text [size, …], or a structure of them, see `structures.of_user`. An
            array alone is held as `precision.narrow` says, and numbers [size] become vectors
            [size, 1]. In a structure arrays keep their shapes, whole numbers are int32 or int64
            (uint8 stays), and booleans stay. Text is held in bytes, as UTF-8.
        names: of the columns of an array alone, for an error.

    Returns:
        What the model is given, and what was given: structures of arrays [size, …]. Identity is of
        the latter.

    Raises:
        tfbp.UserError: neither numbers nor text, no examples, lengths that differ, a value that is
            missing or infinite, or numbers that would be rounded until they are equal.
    """

    def checked(path: Path, leaf: object) -> np.ndarray:
        argument = structures.named("x", path)
        if strings.is_text(leaf):
            return strings.utf8(argument, leaf)
        array = numbers(argument, leaf)
        check_finite(argument, array, names)
        return array

    def narrowed(path: Path, leaf: np.ndarray) -> np.ndarray:
        argument = structures.named("x", path)
        if leaf.dtype.kind == "O" or (path and leaf.dtype.kind == "b"):
            return leaf
        if path and leaf.dtype.kind in "iu" and leaf.dtype != np.uint8:
            return precision.whole(argument, leaf)
        return precision.narrow(argument, leaf, names)

    given = structures.of_user("x", x, checked)
    structures.check_sizes("x", given, ("x", given))
    held = structures.each_with_path(narrowed, given)
    if not structures.is_nested(given) and given.ndim == 1 and given.dtype.kind != "O":
        given, held = given[:, np.newaxis], held[:, np.newaxis]
    return held, given


def targets(y: object) -> Any:
    """Makes `y`, or each leaf of a structure, labels, int64 [size] (from whole numbers), or values,
    float32 [size, k].

    Raises:
        tfbp.UserError: not numbers, no examples, another shape, a value that is missing, infinite
            or would be rounded until it equals others.
    """
    return structures.of_user("y", y, _target)


def _target(path: Path, leaf: object) -> np.ndarray:
    argument = structures.named("y", path)
    y = numbers(argument, labels.refuse_missing(leaf, argument=argument))
    if np.issubdtype(y.dtype, np.floating):
        if y.ndim > 2:
            raise mistake(argument, "must have the shape [size] or [size, values]", y.shape)
        check_finite(argument, y)
        return precision.narrow(argument, y).reshape(len(y), -1)
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1:
        raise mistake(argument, "must be labels of the shape [size], or one-hot rows", y.shape)
    if y.dtype.kind == "u" and y.max() > np.iinfo(np.int64).max:
        raise mistake(argument, "must be labels that int64 holds, below 2^63", int(y.max()))
    return y.astype(np.int64)


def weights(values: object, size: int) -> np.ndarray:
    """Makes the weights of examples float32 [size].

    Raises:
        tfbp.UserError: not numbers, another shape, one is missing, infinite or negative, or all
            are 0.
    """
    if isinstance(values, Mapping):
        raise mistake("weights", "must be one array, [size], for all of `y`", list(values))
    array_like.check("weights", values)
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


def check_names(argument: str, names: Sequence[str] | None, rows: Any) -> None:
    """Checks that names, if there are any, are one for each entry of the rows, [size, entries].

    Raises:
        tfbp.UserError: they are more or fewer, one is there twice, or rows are no vectors, or a
            structure.
    """
    if names is not None and structures.is_nested(rows):
        raise mistake(argument, "must be left out where arrays have names of their own", names)
    if names is not None and (len(names),) != rows.shape[1:]:
        rule = f"must be one name for each entry of a row, whose shape is {list(rows.shape[1:])}"
        raise mistake(argument, rule, list(names))
    if twice := [name for name in names or () if list(names or ()).count(name) > 1]:
        raise mistake(argument, "must differ from each other", twice[0])
