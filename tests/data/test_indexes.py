import numpy as np
import pandas
import pytest

from tfbp.data.examples import Examples
from tfbp.data.splits import Splits
from tfbp.errors import UserError

X = pandas.DataFrame(np.random.default_rng(0).normal(size=(40, 3)), columns=["a", "b", "c"])
Y = pandas.Series(np.arange(40) % 2)
TURNED = Y[::-1]
N = np.asarray(Y)


@pytest.mark.parametrize(
    ("x", "y", "more", "names"),
    [
        (X, TURNED, {}, "`y` must have the index of `x`"),
        (N, Y, {"weights": TURNED}, "`weights` must have the index of `y`"),
        (X, N, {"groups": TURNED}, "`groups` must have the index of `x`"),
        (X, N, {"order": TURNED}, "`order` must have the index of `x`"),
        ({"a": X["a"], "b": {"c": TURNED}}, N, {}, r'`x\["b"\]\["c"\]` must .* of `x\["a"\]`'),
        ((N, X), {"k": TURNED}, {}, r'`y\["k"\]` must have the index of `x\[1\]`'),
    ],
)
def test_pandas_objects_of_different_indexes_are_refused(x, y, more, names):
    with pytest.raises(UserError, match=rf"{names}.* Received: 39 and 0 in row 0. Align them"):
        Splits.from_arrays(x, y, **more)
    if not more.keys() & {"groups", "order"}:
        with pytest.raises(UserError, match=names):
            Examples.from_arrays(x, y, **more)


def test_equal_indexes_of_any_kind_and_arrays_are_taken_as_they_are():
    rows = X.sample(frac=1, random_state=0)
    assert Examples.from_arrays(rows, Y.reindex(rows.index)).labels.tolist() == [
        label % 2 for label in rows.index
    ]
    assert Examples.from_arrays(X, TURNED.to_numpy()).labels.tolist() == N[::-1].tolist()
    assert Examples.from_arrays(X, Y.set_axis(list(range(40)))).size == 40


def test_the_columns_of_a_frame_of_numbers_are_called_as_they_are_there():
    examples = Examples.from_arrays(X[["c", "a"]], Y)
    assert examples.columns == ("c", "a")
    assert Examples.from_arrays(X, Y, columns=["d", "e", "f"]).columns == ("d", "e", "f")
    assert Examples.from_arrays(X.to_numpy(), Y).columns is None
    assert Examples.from_arrays(X.set_axis([0, 1, 2], axis=1), Y).columns is None
    assert Examples.from_arrays(X.astype(str), Y).columns is None
    with pytest.raises(UserError, match="the form of `train`, columns c, a"):
        Splits(examples, None, Examples.from_arrays(X[["a", "c"]], Y))
    with pytest.raises(UserError, match="`columns` must differ from each other"):
        Examples.from_arrays(X[["a", "a"]], Y)
