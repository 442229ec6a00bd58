"""Several labels for each example, as users hand them in: rows of 0 and 1, or lists of names.

Both become rows of 0 and 1, float32 [size, names], as `tfbp.MultiLabel` takes them.
"""

from collections.abc import Collection, Sequence

import numpy as np

from tfbp.data import missing
from tfbp.errors import UserError, mistake

_LISTS = (list, tuple, set, frozenset, np.ndarray)
Names = tuple[str, ...]


def lists(given: object, argument: str) -> list[Collection[str]] | None:
    """Returns the lists of names, one for each example; None: it is something else.

    Raises:
        tfbp.UserError: some rows are lists of names, and others are not.
    """
    if not isinstance(given, (list, tuple)) and str(getattr(given, "dtype", "")) != "object":
        return None
    if getattr(given, "ndim", 1) != 1:
        return None
    rows = list(given)  # type: ignore[call-overload]
    are_lists = [isinstance(row, _LISTS) for row in rows]
    of_names = (row for row, is_list in zip(rows, are_lists, strict=True) if is_list)
    if not any(isinstance(name, str) for row in of_names for name in row):
        return None
    if not all(are_lists):
        usual = 2 * sum(are_lists) > len(rows)
        number = are_lists.index(not usual)
        rule = "must be a list of names" if usual else "must be one name, as others are,"
        raise mistake(argument, f"{rule} in every row (row {number})", rows[number])
    return rows


def columns(given: object) -> Names | None:
    """Returns what the columns of a DataFrame are called; None: it is none, or they are counted."""
    names = tuple(getattr(given, "columns", ()))
    if names == tuple(range(len(names))) or not all(isinstance(name, str | int) for name in names):
        return None
    return tuple(map(str, names))


def by_name(
    y: np.ndarray, columns: Names, classes: Sequence[object] | None
) -> tuple[np.ndarray, Names]:
    """Returns the columns [size, names] in the order of `classes`, which are their names.

    Raises:
        tfbp.UserError: the names are not those of the columns.
    """
    names = columns if classes is None else tuple(map(str, classes))
    for name in names:
        if name not in columns:
            raise mistake("classes", "must be the names of the columns of `y`", name, columns)
    if left_out := sorted({*columns} - {*names}):
        raise mistake("classes", f"must have all columns of `y`, {left_out[0]!r} too", list(names))
    _check_different(columns)
    _check_different(names)
    return y[:, [columns.index(name) for name in names]], names


def from_lists(
    rows: Sequence[Collection[str]], classes: Sequence[object] | None, argument: str
) -> tuple[np.ndarray, Names]:
    """Returns rows of 0 and 1, and their names: `classes`, or all that occur, sorted.

    Raises:
        tfbp.UserError: an entry is no name, is missing, or is not among `classes`.
    """
    known = None if classes is None else tuple(map(str, classes))
    called_missing = known or ()
    for number, row in enumerate(rows):
        for name in row:
            absent = missing.is_missing(name) and name not in called_missing
            if absent or not isinstance(name, str):
                raise mistake(argument, f"must hold names alone (row {number})", name)
            if known is not None and name not in known:
                raise mistake(argument, f"must hold names of `classes` (row {number})", name, known)
    names = known or tuple(sorted({str(name) for row in rows for name in row}))
    position = {name: label for label, name in enumerate(names)}
    y = np.zeros((len(rows), len(names)), np.float32)
    for number, row in enumerate(rows):
        y[number, [position[name] for name in row]] = 1
    return y, names


def are_rows(y: np.ndarray) -> bool:
    """Whether an array holds rows of the numbers 0 and 1, of two entries or more."""
    return (
        y.dtype.kind in "biuf" and y.ndim == 2 and y.shape[1] > 1 and bool(np.isin(y, (0, 1)).all())
    )


def from_rows(y: np.ndarray, names: Sequence[object] | None) -> tuple[np.ndarray, Names]:
    """Returns rows of 0 and 1, and their names; default: "0", "1", ….

    Args:
        names: of the columns; or whole numbers: the columns themselves, in the order wanted.

    Raises:
        tfbp.UserError: the names are more or fewer than the columns, or one is there twice, or is
            the number of no column.
    """
    known = tuple(map(str, range(y.shape[1]) if names is None else names))
    if len(known) != y.shape[1]:
        raise UserError(
            f"`classes` must be one name for each of the {y.shape[1]} columns of `y`. "
            f"Received: {len(known)}."
        )
    _check_different(known)
    if names is not None and not any(isinstance(name, str) for name in names):
        counted = tuple(map(str, range(y.shape[1])))
        return by_name(y.astype(np.float32), counted, known)
    return y.astype(np.float32), known


def _check_different(names: Names) -> None:
    if twice := [name for name in names if names.count(name) > 1]:
        raise mistake("classes", "must differ from each other", twice[0])
