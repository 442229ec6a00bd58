"""Numbers as NumPy, pandas and Python hold them: brought to arrays, none of them missing."""

from collections.abc import Sequence

import numpy as np

from tfbp.data import missing
from tfbp.errors import mistake


def numbers(argument: str, values: object) -> np.ndarray:
    """Brings numbers or booleans to an array of a numeric dtype, [size, …].

    Raises:
        tfbp.UserError: not numbers, ragged, a value that is missing, or no rows.
    """
    if isinstance(values, np.ma.MaskedArray):
        _check_present(argument, values)
    try:
        array = np.asarray(values)
    except ValueError:
        rule = "must be an array whose rows have one shape"
        raise mistake(argument, rule, "a ragged list") from None
    if array.dtype.kind == "O":
        array = unboxed(argument, array)
    if array.dtype.kind not in "buif":
        raise mistake(argument, "must be numbers", array.dtype.name)
    if array.ndim == 0:
        raise mistake(argument, "must have one row for each example", array.item())
    if not array.size:
        raise mistake(argument, "must hold at least one example", array.shape)
    return array.astype(np.float64) if array.dtype.itemsize > 8 else array


def unboxed(argument: str, array: np.ndarray) -> np.ndarray:
    """Numbers that NumPy holds as Python objects, as pandas gives columns of different types.

    Raises:
        tfbp.UserError: as of `numbers`, and numbers that int64 cannot hold.
    """
    if any(isinstance(value, (list, tuple, np.ndarray)) for value in array.flat):
        raise mistake(argument, "must be an array whose rows have one shape", "a ragged list")
    _check_present(argument, array)
    for row, values in enumerate(array.reshape(len(array), -1) if array.ndim else ()):
        for column, value in enumerate(values):
            if not isinstance(value, (bool, int, float, np.number, np.bool_)):
                raise mistake(argument, f"must be numbers (row {row}, column {column})", value)
    whole = all(isinstance(value, (bool, int, np.integer, np.bool_)) for value in array.flat)
    try:
        return array.astype(np.int64 if whole else np.float64)
    except OverflowError:
        largest = max(array.flat, key=abs)
        raise mistake(argument, "must be whole numbers that int64 holds", largest) from None


def _check_present(argument: str, array: np.ndarray, names: Sequence[str] | None = None) -> None:
    empty = missing.mask(array)
    if not empty.any():
        return
    cell = tuple(np.argwhere(empty)[0].tolist())
    value = np.ma.getdata(array)[cell]
    value = float(value) if isinstance(value, np.floating) else value
    where = f"row {cell[0]}"
    if len(cell) == 2:
        where += f", column {names[cell[1]] if names else cell[1]!r}"
    rows = np.count_nonzero(empty.reshape(len(empty), -1).any(axis=1))
    more = f"; {rows - 1:,} more rows have some" if rows > 2 else ""
    raise mistake(argument, f"must have no missing values ({where}{more})", value)


def check_finite(argument: str, array: np.ndarray, names: Sequence[str] | None = None) -> None:
    """Checks that no number is NaN or infinite; `names` are those of the columns.

    Raises:
        tfbp.UserError: one is; it says in which row and column.
    """
    if array.dtype.kind != "f":
        return
    # A sum is finite only when every entry is (or overflowed, which the second look settles).
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(array.sum(dtype=np.float64)):
            return
    bad = np.flatnonzero(~np.isfinite(array.reshape(len(array), -1)).all(axis=1))
    if len(bad):
        more = f", {len(bad) - 1} more" if len(bad) > 1 else ""
        row = array[bad[0]]
        value = float(row[~np.isfinite(row)].flat[0]) if row.ndim else float(row)
        where = f"row {bad[0]}{more}"
        if row.ndim == 1:
            column = int(np.flatnonzero(~np.isfinite(row))[0])
            where += f"; column {repr(names[column]) if names else column}"
        raise mistake(argument, f"must be finite ({where})", value)
