import numpy as np
import pytest

from tfbp.data.examples import Examples
from tfbp.data.splits import Splits
from tfbp.errors import UserError

X = np.arange(12.0).reshape(6, 2)
Y = np.array([0, 1, 0, 1, 0, 1])


def with_entry(array, position, value):
    array = array.astype(float)
    array[position] = value
    return array


@pytest.mark.parametrize(
    ("x", "y", "classes", "message"),
    [
        (
            with_entry(X, (3, 1), np.nan),
            Y,
            None,
            r"finite \(row 3; column 1\). Received: nan",
        ),
        (
            with_entry(X, (slice(2, 5), 0), np.inf),
            Y,
            None,
            r"2, 2 more; column 0\). Received: inf",
        ),
        (X, with_entry(Y, 4, np.nan), None, "`y` .* missing in row 4. Received: nan"),
        (X[:0], Y[:0], None, "at least one example"),
        (X, Y[:5], None, "one row for each of the 6 rows of `x`. Received: 5"),
        (X, np.zeros(6, int), None, "must be two or more"),
        (X, Y, ["a"], "must be two or more"),
        (X, Y, ["a", "a"], "differ from each other"),
        (X, Y * 2, None, r"without a gap .* 2 different numbers, 0, 2. .*`classes=\[0, 2\]`"),
        (X, Y * 2, ["a", "b", "c"], "'b' has none"),
        (X, Y, ["a", "b", "c"], "'c' has none"),
        (X, Y, list("abcdefgh"), "6 examples of 8 classes"),
        (X, Y + 1, ["a", "b"], r"labels from 0 to 1, one for each class \(row 1\). Received: 2"),
        (X, Y - 1, ["a", "b"], r"row 0\). Received: -1"),
        (X, np.array(["a", "b", "a", "b", "a", "bb"]), ["a", "b"], r"row 5\). Received: 'bb'"),
        (X, np.full((6, 2), 2), None, "or one-hot rows"),
        (X, Y + 0.5, ["a", "b"], r"whole labels, .* Received: '0.5 \(row 0\)'"),
        (np.array([["one", 1]] * 6, object), Y, None, r"`x` must be numbers \(row 0, column 0\)"),
        ([[1], [1, 2]], [0, 1], None, "one shape"),
        (1.0, 1, None, "one row for each example"),
    ],
)
def test_arrays_that_cannot_be_learnt_from_are_refused(x, y, classes, message):
    with pytest.raises(UserError, match=message):
        Splits.from_arrays(x, y, classes=classes)


def test_a_sum_that_overflows_is_not_taken_for_infinity():
    x = np.full((4, 2), np.finfo(np.float32).max)
    assert Examples.from_arrays(x, [0, 1, 0, 1]).size == 4
