import numpy as np
import pandas
import pytest
import tensorflow as tf

from tfbp.data import labels, text
from tfbp.data.splits import Splits
from tfbp.errors import UserError
from tfbp.tasks.classification import Classification

X = np.random.default_rng(0).normal(size=(30, 3))
LABELS = np.arange(30) % 3
NAMES = np.array(["owl", "fox", "elk"])[LABELS]


def labels_of(y, **settings):
    """Returns class names → the rows of each, of all splits together."""
    splits = Splits.from_arrays(np.arange(30.0), y, validation=0, test=0, **settings)
    x, _ = splits.train.read(np.arange(30))
    rows = x.numpy()[:, 0].astype(int)
    return {
        name: sorted(rows[splits.train.labels == label].tolist())
        for label, name in enumerate(splits.classes)
    }


def test_a_column_of_names_is_a_list_of_names():
    expected = {name: np.flatnonzero(name == NAMES).tolist() for name in ("elk", "fox", "owl")}
    for y in (NAMES, NAMES[:, None], pandas.DataFrame({"animal": NAMES}), NAMES.astype(object)):
        assert labels_of(y) == expected
    assert labels_of(np.char.encode(NAMES)[:, None]) == expected


def test_rows_of_several_names_are_refused():
    with pytest.raises(UserError, match=r"one name for each example.* Received: \(30, 2\)"):
        Splits.from_arrays(X, np.stack([NAMES, NAMES], axis=1))


@pytest.mark.parametrize("y", [LABELS + 1, LABELS * 10, LABELS - 1, LABELS * 10**12])
def test_numbers_with_gaps_are_refused_with_both_ways_out_and_each_of_them_works(y):
    shown = ", ".join(map(str, np.unique(y)))
    with pytest.raises(UserError, match=rf"without a gap .* 3 different numbers, {shown}\. ") as e:
        Splits.from_arrays(X, y)
    assert "`y.astype(str)`" in str(e.value)
    assert f"`classes={np.unique(y).tolist()}`" in str(e.value)
    rows = {str(value): np.flatnonzero(y == value).tolist() for value in np.unique(y)}
    assert labels_of(y, classes=np.unique(y).tolist()) == rows
    assert labels_of(y.astype(str)) == rows


def test_whole_numbers_as_classes_say_the_order_of_the_labels():
    splits = Splits.from_arrays(X, LABELS, classes=[2, 0, 1], validation=0, test=0)
    assert splits.classes == ("2", "0", "1")
    assert splits.train.labels.tolist() == ((LABELS + 1) % 3).tolist()
    with pytest.raises(UserError, match=r"names of `classes` \(row 2\). Received: 2"):
        Splits.from_arrays(X, LABELS, classes=[0, 1])


@pytest.mark.parametrize("dtype", [np.int64, bool, np.uint8])
def test_one_hot_rows_are_labels(dtype):
    one_hot = np.eye(3, dtype=dtype)[LABELS]
    assert Splits.from_arrays(X, one_hot, validation=0, test=0).train.labels.tolist() == (
        LABELS.tolist()
    )


def test_one_hot_floats_are_labels_where_classes_are_given_and_else_values():
    one_hot = np.eye(3, dtype=np.float32)[LABELS]
    assert labels_of(one_hot, classes=["a", "b", "c"]) == labels_of(LABELS, classes=["a", "b", "c"])
    values = Splits.from_arrays(X, one_hot, validation=0, test=0)
    assert values.classes is None and np.array_equal(values.train.targets, one_hot)
    with pytest.raises(UserError, match=r"one-hot rows, when `classes` are given"):
        Splits.from_arrays(X, one_hot * 0.9, classes=["a", "b", "c"])


@pytest.mark.parametrize("mode", ["int", "binary", "categorical"])
def test_a_keras_dataset_of_any_label_mode_has_labels(mode):
    two = LABELS % 2
    y = {
        "int": two.astype(np.int32),
        "binary": two.astype(np.float32)[:, None],
        "categorical": np.eye(2, dtype=np.float32)[two],
    }[mode]
    dataset = tf.data.Dataset.from_tensor_slices((X, y)).batch(7)
    splits = Splits.from_dataset(dataset, classes=["no", "yes"], validation=0, test=0)
    assert splits.train.labels.tolist() == two.tolist()


@pytest.mark.parametrize("name", ["caf\udce9", "\ud83d", b"caf\xe9"])
def test_names_that_utf8_cannot_hold_are_refused_before_any_training(name):
    names = np.array([name, "fox" if isinstance(name, str) else b"fox"] * 15, object)
    with pytest.raises(UserError, match="text that UTF-8 can hold"):
        Splits.from_arrays(X, names)
    if isinstance(name, str):
        with pytest.raises(UserError, match="`classes` must be text that UTF-8 can hold"):
            Splits.from_arrays(X, np.arange(30) % 2, classes=[name, "fox"])
        with pytest.raises(UserError, match="`columns` must be text that UTF-8 can hold"):
            Splits.from_arrays(X, LABELS, columns=["a", name, "c"])
        with pytest.raises(UserError, match="`text` must be text that UTF-8 can hold"):
            text.cut(f"a {name} b" * 20, kind="char", vocabulary_size=9, steps=3)


def test_an_ordered_categorical_has_its_categories_for_classes(caplog):
    sizes = ["small", "large", "huge", "small"]
    order = ["small", "medium", "large", "huge"]
    column = pandas.Categorical(sizes, order, ordered=True)
    for y in (column, pandas.Series(column), pandas.DataFrame({"size": column})):
        targets, names = labels.separate(y, None)
        assert names == ("small", "large", "huge") and targets.tolist() == [0, 1, 2, 0]
    assert "No label is of the categories 'medium'" in caplog.text
    targets, names = labels.separate(column, ["huge", "large", "small"])
    assert targets.tolist() == [2, 1, 0, 2]
    targets, names = labels.separate(pandas.cut([1.0, 9.0, 12.0, 2.0], [0, 5, 10, 15]), None)
    assert names == ("(0, 5]", "(5, 10]", "(10, 15]") and targets.tolist() == [0, 1, 2, 0]


@pytest.mark.parametrize("classes", [{"owl", "fox", "elk"}, frozenset(["owl", "fox"]), "owl"])
def test_classes_without_an_order_are_refused(classes):
    examples = Splits.from_arrays(X, NAMES, validation=0, test=0).train
    for call in (
        lambda: Splits.from_arrays(X, NAMES, classes=classes),
        lambda: Splits.from_arrays(X, {"a": NAMES}, classes={"a": classes}),
        lambda: Splits.cut(examples, classes=classes),
        lambda: Classification(classes),
    ):
        with pytest.raises(UserError, match="`classes` must be a list of names, in the order"):
            call()


@pytest.mark.parametrize(
    "value", [("fox",), ["fox"], {"fox"}, {"fox": 1}, 3, 2.5, True, np.int64(4)]
)
def test_what_is_no_name_among_names_is_refused_by_row(value):
    names = [*NAMES.tolist()]
    names[7] = value
    as_array = np.empty(30, object)
    as_array[:] = names
    for y in (names, as_array, pandas.Series(names)):
        with pytest.raises(UserError, match=r"`y` must .*\(row 7\)\. Received: "):
            Splits.from_arrays(X, y)
