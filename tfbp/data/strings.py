"""Text as users hand it in, to be read by the model itself: none of it missing, held as UTF-8."""

import numpy as np

from tfbp.data import missing
from tfbp.errors import UserError, mistake


def is_text(values: object) -> bool:
    """Whether values are text: strings or bytes, [size, …], some of which may be missing."""
    if isinstance(values, list | tuple) and not isinstance(_first(values), str | bytes):
        return False  # A ragged list is no array yet.
    array = np.asarray(values)
    if array.dtype.kind != "O":
        return array.dtype.kind in "SUT"
    flat = array.ravel().tolist()
    present = [value for value in flat if not missing.is_missing(value) or isinstance(value, str)]
    return bool(present) and all(isinstance(value, str | bytes) for value in present)


def _first(values: object) -> object:
    while isinstance(values, list | tuple) and values:
        values = values[0]
    return values


def utf8(argument: str, values: object) -> np.ndarray:
    """Brings text to bytes: an array of objects, of the same shape.

    Raises:
        tfbp.UserError: some is missing, as `missing.TEXT` is, or cannot be written as UTF-8; or
            there are no rows.
    """
    array = np.asarray(values)
    if not array.ndim:
        raise mistake(argument, "must have one row for each example", array.item())
    if not array.size:
        raise mistake(argument, "must hold at least one example", array.shape)
    if (empty := missing.mask(values)).any():
        cell = tuple(np.argwhere(empty)[0].tolist())
        raise UserError(
            f"`{argument}` must hold a text in every row: it is missing in row {cell[0]}. "
            f"Received: {array[cell]!r}. Leave such rows out, or let a word of your own stand for "
            "what is not there."
        )
    held = np.empty(array.shape, object)
    for number, value in enumerate(array.ravel().tolist()):
        try:
            held.flat[number] = value if isinstance(value, bytes) else value.encode()
        except UnicodeEncodeError:
            row = number // (array.size // len(array))
            rule = f"must be text that UTF-8 can hold (row {row})"
            raise mistake(argument, rule, value[:80]) from None
    return held
