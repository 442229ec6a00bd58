import numpy as np
import pytest
import scipy.sparse
import tensorflow as tf

from tfbp.data.splits import Splits
from tfbp.errors import UserError

X = np.arange(12.0)
Y = X.astype(int) % 2
OPTIONAL = ("weights", "groups", "order")
ROWS = np.stack([X, X], axis=1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (tf.RaggedTensor.from_tensor(ROWS), r"Received: RaggedTensor\. .*`\.to_tensor\(\)`"),
        (tf.sparse.from_dense(ROWS), r"Received: SparseTensor\. .*to_dense"),
        (scipy.sparse.coo_matrix(ROWS), r"Received: coo_matrix\. .*`\.toarray\(\)`"),
        (scipy.sparse.csc_array(ROWS), r"Received: csc_array\."),
        (tf.data.Dataset.from_tensor_slices(ROWS), "go to `Splits.from_dataset`"),
        (iter(ROWS), "Make it a list"),
        (frozenset(X), r"Received: frozenset\. Make it a list"),
        (None, "Nothing was given"),
    ],
)
def test_what_only_looks_like_an_array_is_refused_with_the_way_out(given, message):
    for name, x, y, more in [
        ("x", given, Y, {}),
        (r'x\["a"\]', {"a": given, "b": X}, Y, {}),
        ("y", X, given, {}),
        *((name, X, Y, {name: given}) for name in OPTIONAL if given is not None),
    ]:
        with pytest.raises(UserError, match=rf"`{name}` must be an array\. .*{message}"):
            Splits.from_arrays(x, y, **more)


@pytest.mark.parametrize("rows", [[[1, 2], [1], [2]], [[[1]], [[1], [2]]], [[1, 2], None]])
def test_lists_of_rows_of_different_shapes_are_refused_by_row(rows):
    rows = rows + rows[:1] * (12 - len(rows))
    for y, more in ((rows, {}), (Y, {"groups": rows}), (Y, {"order": rows})):
        with pytest.raises(UserError, match=r"rows of one shape\. Received: .* in row 1"):
            Splits.from_arrays(X, y, **more)
