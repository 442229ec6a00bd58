"""The indexes of pandas objects, which say what each row is, where arrays go by position alone."""

from collections.abc import Mapping
from typing import Any

from tfbp.data import structures
from tfbp.errors import UserError


def check_equal(**given: Any) -> None:
    """Checks that all DataFrames and Series, also those within structures, have one index.

    Args:
        given: by what an error calls each. What is no pandas object has no index, and lengths that
            differ are left to `structures.check_sizes`.

    Raises:
        tfbp.UserError: two have different ones.
    """
    found: dict[str, Any] = {}
    for argument, value in given.items():
        _collect(found, argument, value)
    for name, index in found.items():
        first, model = next(iter(found.items()))
        if len(index) == len(model) and not index.equals(model):
            row = next(row for row, label in enumerate(index) if label != model[row])
            raise UserError(
                f"`{name}` must have the index of `{first}`: rows go together by position. "
                f"Received: {index[row]!r} and {model[row]!r} in row {row}. Align them with "
                f"`.reindex({first}.index)`, or hand over `.to_numpy()` if the positions are right."
            )


def _collect(found: dict[str, Any], argument: str, value: Any) -> None:
    if isinstance(value, Mapping | tuple):
        parts = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, part in parts:
            _collect(found, structures.named(argument, (key,)), part)
    elif hasattr(value, "iloc") and hasattr(value, "index"):
        found[argument] = value.index
