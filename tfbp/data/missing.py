"""Values that are missing: what NumPy, pandas and CSV files write where there is nothing."""

import numpy as np

# Text that pandas.read_csv takes for a missing value (its `na_values`, pandas 3.0).
TEXT = frozenset(
    (
        *("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND"),
        *("1.#QNAN", "<NA>", "N/A", "NA", "NULL", "NaN", "NaT", "None", "n/a", "nan", "null"),
    )
)


def is_missing(value: object) -> bool:
    """Whether one value stands for nothing: None, NaN, pandas.NA, NaT, or one of `TEXT`."""
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if isinstance(value, str):
        return value.strip() in TEXT
    if value is None or value is np.ma.masked:
        return True
    try:
        # NaN and NaT are the values that differ from themselves.
        return bool(value != value)
    except (TypeError, ValueError):
        return True  # pandas.NA: whether it differs from itself is missing too.


def mask(values: object) -> np.ndarray:
    """Which entries of an array are missing: bool, of its shape. Masked entries are."""
    masked = np.ma.getmaskarray(values) if isinstance(values, np.ma.MaskedArray) else False
    array = np.asarray(values)
    if array.dtype.kind in "fc":
        empty = np.isnan(array)
    elif array.dtype.kind in "mM":
        empty = np.isnat(array)
    elif array.dtype.kind in "OSUT":
        flat = [is_missing(value) for value in array.ravel().tolist()]
        empty = np.array(flat, bool).reshape(array.shape)
    else:
        empty = np.zeros(array.shape, bool)
    return empty | masked
