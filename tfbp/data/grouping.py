"""What belongs together: the photographs of a patient, the readings of a machine, a burst of shots.

A model that is trained on some of a group and judged by the rest is judged by what it has seen.
"""

import re
from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from tfbp.data import array_like, missing
from tfbp.errors import UserError, mistake


def names(groups: object, size: int) -> np.ndarray:
    """Checks the group of each example, and gives its name: str [size].

    Args:
        groups: [size] or [size, 1]: text or whole numbers; equal ones are one group, as 1 and 1.0
            are, or text and its bytes.

    Raises:
        tfbp.UserError: another shape, or a group is missing, or is a list.
    """
    array = array_like.array("groups", groups)
    empty = missing.mask(groups)
    if array.shape not in ((size,), (size, 1)):
        raise mistake("groups", f"must be one for each of the {size} examples", array.shape)
    if empty.any():
        row = int(np.flatnonzero(empty)[0])
        value = array.reshape(-1)[row]
        raise mistake("groups", f"must have a group in every row (row {row} has none)", value)
    # Of the spellings of one group the first in the alphabet is its name, whatever the row order.
    name_of: dict[object, str] = {}
    keys = [
        group.decode(errors="surrogateescape") if isinstance(group, bytes) else group
        for group in array.reshape(-1).tolist()
    ]
    for row, key in enumerate(keys):
        if not isinstance(key, Hashable):
            raise mistake("groups", f"must be text or whole numbers (row {row})", key)
        name_of[key] = min(str(key), name_of.get(key, str(key)))
    return np.array([name_of[key] for key in keys])


def units(groups: np.ndarray, hashes: np.ndarray) -> np.ndarray:
    """The unit of each example, int64 [size]: groups that share a content are one unit.

    Args:
        groups: [size], names.
        hashes: content hashes [size].
    """
    _, group_of = np.unique(groups, return_inverse=True)
    _, content_of = np.unique(hashes, return_inverse=True)
    unit_of = group_of.astype(np.int64)
    while True:
        before = unit_of
        for key in (content_of, group_of):
            lowest = np.full(key.max() + 1, len(groups), np.int64)
            np.minimum.at(lowest, key, unit_of)
            unit_of = lowest[key]
        if np.array_equal(before, unit_of):
            return np.unique(unit_of, return_inverse=True)[1]


def from_names(files: Sequence[str], pattern: str) -> list[str]:
    """The group of each file: what a pattern finds in its name, or what its parentheses hold.

    Args:
        files: paths from the root folder on.
        pattern: a regular expression: `(p[0-9]+)_` finds "p17" in "cat/p17_03.jpg".

    Raises:
        tfbp.UserError: it is no regular expression, or finds nothing in a name.
    """
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise mistake("group", f"must be a regular expression ({error})", pattern) from None
    groups = []
    for file in files:
        match = expression.search(file)
        pieces = (match.groups() or (match.group(),)) if match else ()
        if not any(pieces):
            rule = f"must find a group in the name of every file, {file!r} too"
            raise mistake("group", rule, pattern)
        groups.append("/".join(piece or "" for piece in pieces))
    return groups


def check_apart(groups: np.ndarray, parts: Mapping[str, np.ndarray]) -> None:
    """Checks that splits which the data has itself share no group.

    Args:
        groups: [size], names.
        parts: the positions of the examples of each split.

    Raises:
        tfbp.UserError: a group is in two of them.
    """
    owner: dict[str, str] = {}
    for part, rows in parts.items():
        for group in np.unique(groups[rows]).tolist():
            if owner.setdefault(group, part) != part:
                raise UserError(
                    f"A group must be in one split alone. Received: {group!r} in `{owner[group]}` "
                    f"and in `{part}`. Move it, or let `group` cut all of the data anew."
                )
