import numpy as np
import pandas as pd
import pytest

import tfbp
from tfbp.data import labels, tables

ROWS = np.array([[1, 1, 0], [0, 0, 1], [0, 0, 0], [1, 0, 1]])
NAMES = ("blue", "green", "red")
TAGS = [["blue", "green"], ["red"], [], ["red", "blue"]]


@pytest.mark.parametrize(
    ("given", "classes", "names"),
    [
        (ROWS, None, ("0", "1", "2")),
        (ROWS.tolist(), NAMES, NAMES),
        (ROWS.astype(bool), NAMES, NAMES),
        (ROWS.astype(np.uint8), NAMES, NAMES),
        (ROWS.astype(float), NAMES, NAMES),
        (pd.DataFrame(ROWS, columns=NAMES), None, NAMES),
        (pd.DataFrame(ROWS.astype(bool)), NAMES, NAMES),
        (pd.DataFrame(ROWS[:, [2, 0, 1]], columns=["red", "blue", "green"]), NAMES, NAMES),
        (ROWS[:, [1, 2, 0]], (2, 0, 1), ("2", "0", "1")),
        (TAGS, None, NAMES),
        (list(map(set, TAGS)), NAMES, NAMES),
        (tuple(map(tuple, TAGS)), None, NAMES),
        (pd.Series(TAGS), None, NAMES),
        (np.array([*TAGS, None], object)[:4], NAMES, NAMES),
    ],
)
def test_rows_of_0_and_1_and_lists_of_names_are_several_labels(given, classes, names):
    y, found = labels.separate(given, classes)
    assert found == names
    assert y.dtype == np.float32 and np.array_equal(y, ROWS)


def test_classes_say_the_order_and_may_have_more():
    y, names = labels.separate(TAGS, ("red", "pink", "blue", "green"))
    assert names == ("red", "pink", "blue", "green")
    assert y.tolist() == [[0, 0, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0], [1, 0, 1, 0]]


def test_exactly_one_label_each_is_one_label():
    for given in (
        np.eye(3, dtype=int),
        [["blue"], ["green"], ["red"]],
        [{"blue"}, {"green"}, {"red"}],
    ):
        y, _ = labels.separate(given, NAMES)
        assert y.tolist() == [0, 1, 2]


def test_the_columns_of_a_frame_name_its_classes():
    kinds = ["cat", "dog", "cat", "eel"]
    y, names = labels.separate(pd.get_dummies(kinds), None)
    assert [names[label] for label in y] == kinds
    y, names = labels.separate(pd.DataFrame(ROWS[[0, 1]]), None)
    assert names == ("0", "1", "2")
    y, names = labels.separate(pd.get_dummies(pd.Series([30, 10, 20])), None)
    assert [names[label] for label in y] == ["30", "10", "20"]


@pytest.mark.parametrize("classes", [("eel", "cat", "dog"), ["dog", "eel", "cat"]])
def test_classes_order_the_columns_of_a_frame_by_their_names(classes):
    kinds = ["cat", "dog", "cat", "eel"]
    y, names = labels.separate(pd.get_dummies(kinds, dtype=float), classes)
    assert names == tuple(classes) and [names[label] for label in y] == kinds


def test_floats_without_classes_are_values():
    y, names = labels.separate(ROWS.astype(float), None)
    assert names is None and y.dtype == np.float64


@pytest.mark.parametrize(
    ("given", "classes", "message"),
    [
        (
            ROWS,
            ("a", "b"),
            "`classes` must be one name for each of the 3 columns.*: 2",
        ),
        (ROWS, ("a", "b", "a"), "`classes` must differ.*'a'"),
        (ROWS, (0, 1, 3), "`classes` must be the names of the columns of `y`. Received: '3'"),
        (pd.DataFrame(ROWS, columns=NAMES), ("rde", "blue", "green"), "Did you mean 'red'"),
        (pd.DataFrame(ROWS, columns=NAMES), ("red", "blue"), "all columns of `y`, 'green' too"),
        (ROWS, {"a", "b", "c"}, "`classes` must be a list of names, in the order"),
        (ROWS, "abc", "`classes` must be a list of names.*'abc'"),
        ([["blue", "rde"], ["red"]], NAMES, r"names of `classes` \(row 0\).*Did you mean 'red'"),
        ([["blue", None], ["red"]], None, r"`y` must hold names alone \(row 0\). Received: None"),
        ([["blue"], ["red", ""]], None, r"`y` must hold names alone \(row 1\). Received: ''"),
        ([["blue", 3], ["red"]], None, r"`y` must hold names alone \(row 0\). Received: 3"),
        (ROWS * 2, NAMES, "one-hot rows"),
    ],
)
def test_what_is_neither_is_refused(given, classes, message):
    with pytest.raises(tfbp.UserError, match=message):
        tfbp.Splits.from_arrays(np.arange(len(given)), given, classes=classes)


def test_splits_carry_the_names_and_each_row_its_labels():
    tags = TAGS * 10
    x = np.arange(40.0)
    splits = tfbp.Splits.from_arrays(x, tags, validation=0.25, test=0.25)
    assert splits.classes == NAMES
    rows = np.tile(ROWS, (10, 1))
    for part in splits.parts().values():
        read, y = part.read(np.arange(part.size))
        assert np.array_equal(y, rows[read.numpy()[:, 0].astype(int)])


def csv(tmp_path, head, rows):
    path = tmp_path / "table.csv"
    path.write_text("\n".join([head, *(",".join(map(str, row)) for row in rows)]))
    return path


def test_several_columns_of_0_and_1_are_several_labels(tmp_path):
    path = csv(tmp_path, "x,blue,green,red", [[i, *ROWS[i % 4]] for i in range(20)])
    splits = tables.load(path, target="red, blue", validation=0, test=0)
    assert splits.classes == ("red", "blue") and splits.train.columns == ("x", "green")
    x, y = splits.train.read(np.arange(20))
    assert np.array_equal(y, ROWS[x.numpy()[:, 0].astype(int) % 4][:, [2, 0]])


def test_several_columns_of_which_one_is_1_are_one_label(tmp_path):
    path = csv(tmp_path, "x,blue,red", [[i, i % 2, 1 - i % 2] for i in range(20)])
    splits = tables.load(path, target="blue,red", validation=0, test=0)
    assert splits.classes == ("blue", "red")
    x, y = splits.train.read(np.arange(20))
    assert np.array_equal(y, 1 - x.numpy()[:, 0].astype(int) % 2)


def test_several_columns_of_numbers_are_values(tmp_path):
    path = csv(tmp_path, "x,height,width", [[i, i / 2, 3 * i] for i in range(20)])
    splits = tfbp.load_data(f"csv:{path}?target=width,height&validation=0&test=0", seed=0)
    assert splits.classes is None and splits.train.values == ("width", "height")
    x, y = splits.train.read(np.arange(20))
    np.testing.assert_allclose(y, x.numpy() * [3, 0.5])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "blue,rad"}, "`target` must name one column.*'rad'.*Did you mean 'red'"),
        ({"target": "blue,blue"}, "`target` must name a column that is used for nothing else"),
        ({"target": "blue,red", "weight": "red"}, "used for nothing else"),
        ({"target": "blue,red", "classes": ("a", "b")}, "`classes` must be left out"),
    ],
)
def test_target_columns_that_do_not_fit_are_refused(tmp_path, options, message):
    path = csv(tmp_path, "x,blue,red", [[i, i % 2, i % 3 % 2] for i in range(20)])
    with pytest.raises(tfbp.UserError, match=message):
        tables.load(path, **options)


def test_a_column_whose_name_has_a_comma_is_one_column(tmp_path):
    path = csv(tmp_path, 'x,"a,b",a,b', [[i, i / 2, 0, 1] for i in range(20)])
    assert tables.load(path, target="a,b").train.values == ("a,b",)


@pytest.mark.parametrize("row", [None, float("nan"), "red", 7])
def test_a_row_that_is_no_list_among_lists_of_names_is_refused(row):
    for given in ([*TAGS, row, *TAGS], pd.Series([*TAGS, row])):
        with pytest.raises(tfbp.UserError, match=r"`y` must be a list of names .*\(row 4\)"):
            labels.separate(given, None)
