"""Times as numbers that can be put in order."""

import datetime

import numpy as np

from tfbp.data import array_like, missing
from tfbp.errors import mistake


def numbers(order: object, size: int) -> np.ndarray:
    """Brings times to numbers [size] in the same order.

    Args:
        order: [size] or [size, 1]: numbers, NumPy or Python dates, or text that is all numbers or
            all dates of ISO 8601 ("2024-05-31", "2024-05-31T12:00:00Z").

    Raises:
        tfbp.UserError: another shape, a time is missing, or one is neither a number nor a date.
    """
    array = array_like.array("order", order)
    empty = missing.mask(order)
    if array.shape not in ((size,), (size, 1)):
        raise mistake("order", f"must be one for each of the {size} examples", array.shape)
    array, empty = array.reshape(-1), empty.reshape(-1)
    if empty.any():
        row = int(np.flatnonzero(empty)[0])
        raise mistake("order", f"must have a time in every row (row {row} has none)", array[row])
    if array.dtype.kind in "biuf":
        return array
    if array.dtype.kind == "M":
        return array.astype("datetime64[ns]").astype(np.int64)
    values = array.tolist()
    try:
        return np.array([float(value) for value in values])
    except (TypeError, ValueError):
        return np.array([_seconds(value, row) for row, value in enumerate(values)])


def _seconds(value: object, row: int) -> float:
    if isinstance(value, datetime.datetime):
        time = value
    elif isinstance(value, datetime.date):
        time = datetime.datetime.combine(value, datetime.time())
    else:
        try:
            time = datetime.datetime.fromisoformat(str(value).strip())
        except ValueError:
            rule = f"must be numbers, or dates as 2024-05-31 or 2024-05-31T12:00 (row {row})"
            raise mistake("order", rule, value) from None
    # A time without a zone is as good as any other, if all are without.
    return time.replace(tzinfo=time.tzinfo or datetime.UTC).timestamp()
