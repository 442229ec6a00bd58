"""Several labels for each example, as users hand them in: rows of 0 and 1, or lists of names.

Both become rows of 0 and 1, float32 [size, names], as `tfbp.MultiLabel` takes them.
"""

from collections.abc import Collection, Sequence

import numpy as np

from tfbp.data import missing
from tfbp.errors import UserError, mistake

_LISTS = (list, tuple, set, frozenset, np.ndarray)
Names = tuple[str, ...]


def lists(given: object) -> list[Collection[str]] | None:
    """Returns the lists of names, one for each example; None: it is something else."""
    if not isinstance(given, (list, tuple)) and str(getattr(given, "dtype", "")) != "object":
        return None
    if getattr(given, "ndim", 1) != 1:
        return None
    rows = list(given)  # type: ignore[call-overload]
    if not all(isinstance(row, _LISTS) for row in rows):
        return None
    first = next((name for row in rows for name in row), None)
    return rows if isinstance(first, str) else None


def columns(given: object) -> Names | None:
    """Returns what the columns of a DataFrame are called; None: it is none, or numbers are."""
    names = tuple(getattr(given, "columns", ()))
    return names if names and all(isinstance(name, str) for name in names) else None


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
    """Whether an array holds rows of 0 and 1, of two entries or more."""
    return y.ndim == 2 and y.shape[1] > 1 and bool(np.isin(y, (0, 1)).all())


def from_rows(y: np.ndarray, names: Sequence[object] | None) -> tuple[np.ndarray, Names]:
    """Returns rows of 0 and 1, and their names; default: "0", "1", ….

    Raises:
        tfbp.UserError: the names are more or fewer than the columns, or one is there twice.
    """
    known = tuple(map(str, range(y.shape[1]) if names is None else names))
    if len(known) != y.shape[1]:
        raise UserError(
            f"`classes` must be one name for each of the {y.shape[1]} columns of `y`. "
            f"Received: {len(known)}."
        )
    if twice := [name for name in known if known.count(name) > 1]:
        raise mistake("classes", "must differ from each other", twice[0])
    return y.astype(np.float32), known
