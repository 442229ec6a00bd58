"""What float32, the type that models compute in, would make of given numbers.

float32 has 24 bits for the digits of a number: seconds since 1970, today about 1.7e9, are rounded
to multiples of 128.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tfbp import fingerprint
from tfbp.data import structures
from tfbp.errors import UserError, mistake

# A column whose spread is fewer steps of float32 than this has lost digits to what all its values
# have in common. Four bits of 24 are allowed for that.
_STEPS = 2**20
# Part of a column's different values that may fall together.
_MERGED = 0.01


def narrow(argument: str, array: np.ndarray, names: Sequence[str] | None = None) -> np.ndarray:
    """Brings numbers to the type that they are held in.

    uint8 stays. Other whole numbers become float32 where it holds them all exactly, and else int32
    or int64. All other numbers become float32.

    Args:
        argument: what an error calls the array.
        array: of a numeric dtype, [size, …], without NaN or infinity.
        names: of the columns of an array [size, columns], for an error.

    Raises:
        tfbp.UserError: a number is beyond the range of float32 or int64; or a column of floats,
            [size] or [size, columns], would lose its differences: more than 1 % of its different
            values would become equal, since they are large and lie close together.
    """
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind in "iu":
        narrowed = array.astype(np.float32)
        return narrowed if _equal(array, narrowed).all() else whole(argument, array)
    with np.errstate(over="ignore"):
        narrowed = array.astype(np.float32, copy=False)
    if not np.isfinite(narrowed).all():
        row = np.flatnonzero(~np.isfinite(narrowed.reshape(len(array), -1)).all(axis=1))[0]
        largest = np.abs(array[row]).max()
        raise mistake(argument, f"must be within the range of float32 (row {row})", largest)
    if array.dtype.itemsize > 4 and array.ndim <= 2:
        _check_differences(argument, array.reshape(len(array), -1), names)
    return narrowed


def content_hashes(given: Any) -> np.ndarray:
    """The hex SHA-256 of each row of an array, or of a structure of arrays: [size], dtype "S64".

    Of a structure the paths of its leaves count too, in whatever order they are given. Numbers are
    hashed as float32 where it holds the whole row exactly, so that equal numbers of different types
    are equal; otherwise as they are, so that different numbers are different.
    """
    hashes = {path: _content_hashes(rows) for path, rows in structures.leaves(given).items()}
    if not structures.is_nested(given):
        return hashes[()]
    paths = repr(list(hashes)).encode()
    every = zip(*(each.tolist() for each in hashes.values()), strict=True)
    return np.array([fingerprint.of_bytes(paths, *contents) for contents in every], "S64")


def _content_hashes(rows: np.ndarray) -> np.ndarray:
    if rows.dtype == np.uint8 or rows.dtype == np.float32 or rows.dtype.kind not in "biuf":
        return raw_hashes(rows)
    with np.errstate(over="ignore"):
        narrowed = rows.astype(np.float32)
    exact = _equal(rows, narrowed).reshape(len(rows), -1).all(axis=1)
    if exact.all():
        return raw_hashes(narrowed)
    return np.where(exact, raw_hashes(narrowed), raw_hashes(rows))


def raw_hashes(rows: np.ndarray) -> np.ndarray:
    """The hex SHA-256 of the type and the bytes of each row of an array, [size], dtype "S64"."""
    head = f"{rows.dtype.str}{rows.shape[1:]}".encode()
    if rows.dtype.kind == "O":  # text: bytes of any length
        return np.array([fingerprint.of_bytes(head, *np.ravel(row)) for row in rows], "S64")
    return np.array([fingerprint.of_bytes(head, row.tobytes()) for row in rows], "S64")


def _equal(numbers: np.ndarray, narrowed: np.ndarray) -> np.ndarray:
    if numbers.dtype.kind not in "iu":
        return numbers == narrowed
    # Beyond 2^62 a rounded number need not be one that the type holds.
    within = np.abs(narrowed) <= 2**62
    return within & (np.where(within, narrowed, 0).astype(numbers.dtype) == numbers)


def whole(argument: str, array: np.ndarray) -> np.ndarray:
    """Brings whole numbers to int32 or, where it does not hold them all, to int64.

    Raises:
        tfbp.UserError: one is beyond the range of int64.
    """
    low, high = int(array.min()), int(array.max())
    if high > np.iinfo(np.int64).max:
        raise mistake(argument, "must be whole numbers that int64 holds, below 2^63", high)
    fits = np.iinfo(np.int32).min <= low and high <= np.iinfo(np.int32).max
    return array.astype(np.int32 if fits else np.int64)


def _check_differences(argument: str, columns: np.ndarray, names: Sequence[str] | None) -> None:
    low, high = columns.min(axis=0), columns.max(axis=0)
    step = np.spacing(np.maximum(np.abs(low), np.abs(high)).astype(np.float32)).astype(np.float64)
    with np.errstate(over="ignore"):
        suspects = np.flatnonzero((high > low) & ((high - low) / step < _STEPS))
    for column in suspects.tolist():
        given = np.unique(columns[:, column])
        left = len(np.unique(given.astype(np.float32)))
        if len(given) - left <= _MERGED * len(given):
            continue
        name = f"column {names[column]!r}" if names else f"column {column}"
        raise UserError(
            f"`{argument}` must differ by what float32 can tell apart, which is "
            f"{step[column]:.3g} at the size of {name}: its {len(given):,} different values would "
            f"become {left:,}. Received: values from {low[column]!s} to {high[column]!s}. Subtract "
            "the smallest one, or scale the values yourself."
        )
