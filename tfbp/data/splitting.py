"""Which examples are held out: decided by content, so that it stays so when more examples come."""

import numpy as np

from tfbp import fingerprint
from tfbp.errors import UserError, mistake


def check_fractions(validation: float, test: float) -> None:
    """Checks the fractions that are held out.

    Raises:
        tfbp.UserError: one is outside [0, 1), or nothing would be left to train on.
    """
    for name, fraction in (("validation", validation), ("test", test)):
        if not 0 <= fraction < 1:
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
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cuts examples by content. The answer is three lists of positions, each ascending.

    Inside each class the distinct contents stand in the order of their salted hashes; the first
    share is the test split, the next the validation split. Equal contents stay together, even
    across classes: a content belongs to its smallest label. A new content moves at most one other
    over each of the two cuts. A class of three or more contents has at least one in every split
    that is not empty, and no class is without a training example.

    Args:
        hashes: content hashes [size], dtype "S64".
        labels: int64 [size], or None when there are no classes.
        validation, test: fractions in [0, 1) whose sum is under 1.
        seed: salt of the order.
    """
    contents, content_of = np.unique(hashes, return_inverse=True)
    class_of = np.zeros(len(contents), np.int64)
    if labels is not None:
        class_of[:] = np.iinfo(np.int64).max
        np.minimum.at(class_of, content_of, labels)
    ranks = _ranks(contents, seed)
    part_of = np.zeros(len(contents), np.int64)  # 0 training, 1 validation, 2 test
    for label in np.unique(class_of):
        members = np.flatnonzero(class_of == label)
        members = members[np.argsort(ranks[members])]
        first, second = _cuts(len(members), validation, test)
        part_of[members[:first]] = 2
        part_of[members[first:second]] = 1
    parts = part_of[content_of]
    train, held, judged = (np.flatnonzero(parts == part) for part in range(3))
    return train, held, judged


def first_of_each_class(
    hashes: np.ndarray, labels: np.ndarray, count: int, seed: int
) -> np.ndarray:
    """Picks `count` examples of each class (all of a smaller class), as ascending positions.

    They are the first in the order of salted hashes: which ones does not depend on file order.
    """
    order = np.argsort(_ranks(hashes, seed), kind="stable")
    kept = [order[labels[order] == label][:count] for label in np.unique(labels)]
    return np.sort(np.concatenate(kept))


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
