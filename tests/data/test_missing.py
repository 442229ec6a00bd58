import io

import numpy as np
import pandas
import pytest

from tfbp.data import missing
from tfbp.data.splits import Splits
from tfbp.errors import UserError

X = np.arange(24.0).reshape(12, 2)
NAMES = ["ant", "bee", "cow"] * 4


def with_gaps(*gaps):
    names = [*NAMES]
    names[4 : 4 + len(gaps)] = gaps
    return names


def test_text_that_stands_for_nothing_is_what_pandas_reads_as_nothing():
    words = [*sorted(missing.TEXT), "ant", "0", "-", "Nan", "none", "NaN1", "Namibia"]
    table = pandas.read_csv(io.StringIO("y\n" + "\n".join(f'"{word}"' for word in words)))
    read = table["y"].isna().tolist()
    # pandas knows NaT as a missing time alone; as a label it means the same.
    read[words.index("NaT")] = True
    assert missing.mask(np.array(words, object)).tolist() == read


@pytest.mark.parametrize(
    "y",
    [
        np.array(with_gaps(None), object),
        np.array(with_gaps(float("nan"), None), object),
        with_gaps("nan"),
        with_gaps(""),
        with_gaps("  "),
        np.array([name.encode() for name in with_gaps("NA")]),
        pandas.Series(with_gaps(None)),
        pandas.Series(with_gaps(pandas.NA), dtype="string"),
        pandas.Series(with_gaps(None), dtype="category"),
        pandas.Series(with_gaps(pandas.NaT), dtype=object),
        pandas.Series([0, 1, 2, 0, None, 2] * 2, dtype="Int64"),
        pandas.Series([0.0, 1, 2, 0, None, 2] * 2),
        np.ma.array(np.arange(12) % 3, mask=np.arange(12) == 4),
        pandas.DataFrame({"y": with_gaps(None)}),
    ],
)
def test_a_missing_label_is_refused_with_its_row(y):
    with pytest.raises(UserError, match="`y` must hold a value in every row: it is missing in row"):
        Splits.from_arrays(X, y)


def test_the_number_of_rows_without_a_label_is_said():
    with pytest.raises(UserError, match=r"missing in row 4 and in 2 more\. Received: None"):
        Splits.from_arrays(X, np.array(with_gaps(None, "NA", float("nan")), object))


def test_a_class_may_be_called_like_nothing_if_it_is_named():
    countries = ["NA", "ZA", "BW"] * 4
    splits = Splits.from_arrays(X, countries, classes=("BW", "NA", "ZA"))
    assert splits.classes == ("BW", "NA", "ZA")
    with pytest.raises(UserError, match="name the class in `classes` if it is one"):
        Splits.from_arrays(X, countries)


@pytest.mark.parametrize(
    ("x", "cell"),
    [
        (pandas.DataFrame({"a": [1, None] * 6, "b": [True, False] * 6}), "row 1, column 0"),
        (pandas.DataFrame({"a": [1] * 12, "b": [0, 1, pandas.NA] * 4}), "row 2, column 1"),
        (np.ma.array(X, mask=X == 5), "row 2, column 1"),
    ],
)
def test_a_missing_feature_is_refused_with_its_row_and_column(x, cell):
    with pytest.raises(UserError, match=rf"`x` must have no missing values \({cell}"):
        Splits.from_arrays(x, NAMES)


def test_columns_of_booleans_and_numbers_are_numbers():
    table = pandas.DataFrame({"a": np.arange(12) / 4, "b": [True, False] * 6})
    assert np.asarray(table).dtype == object
    splits = Splits.from_arrays(table, NAMES, validation=0, test=0)
    x, _ = splits.train.read(np.arange(12))
    assert x.numpy().tolist() == [[row / 4, (row + 1) % 2] for row in range(12)]


def test_an_object_that_is_no_number_is_named():
    x = np.array([[1, 2.5], [3, "four"]], object)
    with pytest.raises(UserError, match=r"numbers \(row 1, column 1\). Received: 'four'"):
        Splits.from_arrays(x, ["a", "b"])


def test_numbers_to_predict_that_are_held_as_objects_are_not_taken_for_names():
    y = pandas.Series([0.5, 1.5, 2.5] * 4, dtype="Float64")
    splits = Splits.from_arrays(X, y, validation=0, test=0)
    assert splits.classes is None
    assert splits.train.targets[:, 0].tolist() == [0.5, 1.5, 2.5] * 4
