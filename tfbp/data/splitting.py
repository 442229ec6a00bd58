"""Which examples are held out: decided by content, so that it stays so when more examples come."""

import numpy as np

from tfbp import fingerprint
from tfbp.data import grouping
from tfbp.errors import UserError, mistake

# Of the training, validation and test examples.
Positions = tuple[np.ndarray, np.ndarray, np.ndarray]


def check_fractions(validation: float, test: float) -> None:
    """Checks the fractions that are held out.

    Raises:
        tfbp.UserError: one is outside [0, 1), or nothing would be left to train on.
    """
    for name, fraction in (("validation", validation), ("test", test)):
        if not isinstance(fraction, int | float | np.number) or not 0 <= fraction < 1:
            raise mistake(name, "must be a fraction of at least 0 and under 1", fraction)
    if validation + test >= 1:
        raise UserError(
            "`validation` and `test` must leave examples to train on: their sum must be under 1. "
            f"Received: {validation} and {test}."
        )


def cut(
    hashes: np.ndarray,
    labels: np.ndarray | None,
    validation: float,
    test: float,
    seed: int,
    groups: np.ndarray | None = None,
) -> Positions:
    """Cuts examples by content, or by group. The answer are three lists of ascending positions.

    Inside each class the distinct contents stand in the order of their salted hashes; the first
    share is the test split, the next the validation split. Equal contents stay together, even
    across classes: a content belongs to its smallest label. A new content moves at most one other
    over each of the two cuts. A class of three or more contents has at least one in every split
    that is not empty, and no class is without a training example.

    With groups the same holds of groups instead of contents, in the order of the salted hashes of
    their names. Groups that share a content count as one, and a group belongs to the label that
    most of its examples have. The fractions are those of the groups of each class, however many
    examples they have: only so does a new group, large or small, move at most one other.

    Args:
        hashes: content hashes [size], dtype "S64".
        labels: int64 [size], or None when there are no classes.
        validation, test: fractions in [0, 1) whose sum is under 1.
        seed: salt of the order.
        groups: names [size].
    """
    if groups is None:
        contents, unit_of = np.unique(hashes, return_inverse=True)
        class_of = np.zeros(len(contents), np.int64)
        if labels is not None:
            class_of[:] = np.iinfo(np.int64).max
            np.minimum.at(class_of, unit_of, labels)
        ranks = _ranks(contents, seed)
    else:
        unit_of = grouping.units(groups, hashes)
        class_of = _most_frequent(unit_of, labels)
        ranks = _lowest_ranks(unit_of, groups, seed)
    part_of = np.zeros(len(class_of), np.int64)  # 0 training, 1 validation, 2 test
    for label in np.unique(class_of):
        members = np.flatnonzero(class_of == label)
        members = members[np.argsort(ranks[members])]
        first, second = _cuts(len(members), validation, test)
        part_of[members[:first]] = 2
        part_of[members[first:second]] = 1
    return _positions(part_of[unit_of])


def cut_in_order(order: np.ndarray, validation: float, test: float) -> Positions:
    """Cuts examples by time: the last share is the test split, the one before it the validation.

    Equal times stay together: each cut falls between two times, as near to its fraction as they
    allow. Every split that is not to be empty has an example if there are times enough.

    Args:
        order: numbers [size]: when each example was.
        validation, test: fractions in [0, 1) whose sum is under 1.
    """
    times, time_of, counts = np.unique(order, return_inverse=True, return_counts=True)
    before = np.concatenate([[0], np.cumsum(counts)])  # examples before each time

    def nearest_cut(fraction: float, least: int, last: int, held_out: bool) -> int:
        nearest = int(np.abs(before - (1 - fraction) * len(order)).argmin())
        return max(1, min(max(nearest, least), last - held_out)) if held_out else min(nearest, last)

    # At least two times before the test split, where there is a validation split too.
    second = nearest_cut(test, 1 + (validation > 0), len(times), test > 0)
    first = nearest_cut(test + validation, 1, second, validation > 0)
    return _positions(np.where(time_of < first, 0, np.where(time_of < second, 1, 2)))


def first_of_each_class(
    hashes: np.ndarray, labels: np.ndarray, count: int, seed: int
) -> np.ndarray:
    """Picks `count` examples of each class (all of a smaller class), as ascending positions.

    They are the first in the order of salted hashes: which ones does not depend on file order.
    """
    order = np.argsort(_ranks(hashes, seed), kind="stable")
    kept = [order[labels[order] == label][:count] for label in np.unique(labels)]
    return np.sort(np.concatenate(kept))


def _positions(parts: np.ndarray) -> Positions:
    train, validation, test = (np.flatnonzero(parts == part) for part in range(3))
    return train, validation, test


def _most_frequent(unit_of: np.ndarray, labels: np.ndarray | None) -> np.ndarray:
    """The label that most examples of each unit have; of several the smallest."""
    if labels is None:
        return np.zeros(unit_of.max() + 1, np.int64)
    present, label_of = np.unique(labels, return_inverse=True)
    counts = np.zeros((unit_of.max() + 1, len(present)), np.int64)
    np.add.at(counts, (unit_of, label_of), 1)
    return counts.argmax(axis=1)


def _lowest_ranks(unit_of: np.ndarray, groups: np.ndarray, seed: int) -> np.ndarray:
    """The lowest rank of each unit's groups."""
    known, first = np.unique(groups, return_index=True)
    ranks = _ranks(np.char.encode(known, "utf-8", "surrogatepass"), seed)
    order = np.argsort(ranks)[::-1]
    lowest = np.empty(unit_of.max() + 1, ranks.dtype)
    lowest[unit_of[first[order]]] = ranks[order]  # the last one that is written stays
    return lowest


def _ranks(hashes: np.ndarray, seed: int) -> np.ndarray:
    salt = str(seed).encode()
    return np.array([fingerprint.of_bytes(salt, content) for content in hashes.tolist()], "S64")


def _cuts(size: int, validation: float, test: float) -> tuple[int, int]:
    """Where the test split ends, and where the validation split ends, among `size` contents.

    Both grow by 0 or 1 when `size` grows by 1: that is why a new content moves at most one other.
    """
    held_out = (test > 0) + (validation > 0)
    first = second = 0
    if test:
        first = max(0, min(max(1, _nearest(test * size)), size - held_out))
    if validation:
        second = max(0, min(max(first + 1, _nearest((test + validation) * size)), size - 1))
    return first, max(first, second)


def _nearest(value: float) -> int:
    return int(value + 0.5)
