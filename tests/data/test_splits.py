import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from tfbp.data.examples import Examples
from tfbp.data.splits import Splits
from tfbp.errors import UserError


def labelled_vectors(count=60, classes=3, seed=0):
    x = np.random.default_rng(seed).normal(size=(count, 4)).astype(np.float32)
    return x, np.arange(count) % classes


def test_splits_of_arrays_keep_classes_and_share_no_rows():
    x, y = labelled_vectors()
    splits = Splits.from_arrays(x, y, classes=("a", "b", "c"), validation=0.2, test=0.1)
    parts = [splits.train, splits.validation, splits.test]
    assert [part.size for part in parts] == [42, 12, 6]
    assert np.bincount(splits.test.labels).tolist() == [2, 2, 2]
    assert len(set(np.concatenate([part.hashes for part in parts]))) == 60
    assert splits.classes == ("a", "b", "c")
    assert splits.description == "arrays"


def test_nothing_held_out_is_none():
    splits = Splits.from_arrays(*labelled_vectors(), validation=0, test=0)
    assert splits.validation is None
    assert splits.test is None
    assert splits.train.size == 60


def test_labels_may_be_names():
    x, y = labelled_vectors(9)
    names = np.array(["cat", "ant", "bee"])[y]
    assert Splits.from_arrays(x, names).classes == ("ant", "bee", "cat")
    splits = Splits.from_arrays(x, names, classes=["cat", "ant", "bee"], validation=0, test=0)
    assert splits.train.labels.tolist() == y.tolist()


def test_given_parts_are_not_cut():
    x, y = labelled_vectors()
    given_test = Examples.from_arrays(x + 1, y)
    splits = Splits.cut(Examples.from_arrays(x, y), validation=0.2, test=given_test)
    assert splits.test is given_test
    assert splits.train.size + splits.validation.size == 60


def test_some_labels_of_each_class_are_kept():
    splits = Splits.from_arrays(*labelled_vectors())
    few = splits.keep_per_class(5)
    assert np.bincount(few.train.labels).tolist() == [5, 5, 5]
    assert few.test is splits.test
    assert set(few.train.hashes) < set(splits.train.hashes)
    assert set(few.train.hashes) < set(splits.keep_per_class(6).train.hashes)
    assert set(few.train.hashes) != set(splits.keep_per_class(5, seed=1).train.hashes)


@pytest.mark.parametrize("batched", [False, True])
def test_a_dataset_is_read_like_its_arrays(batched):
    x, y = labelled_vectors()
    dataset = tf.data.Dataset.from_tensor_slices((x, y))
    splits = Splits.from_dataset(dataset.batch(7) if batched else dataset, classes=("a", "b", "c"))
    expected = Splits.from_arrays(x, y, classes=("a", "b", "c"))
    assert splits.train.fingerprint == expected.train.fingerprint
    assert splits.test.fingerprint == expected.test.fingerprint


def test_datasets_that_cannot_be_read_are_refused():
    x, y = labelled_vectors()
    pairs = tf.data.Dataset.from_tensor_slices((x, y))
    uneven = tf.data.Dataset.from_generator(
        lambda: ((np.zeros(n), n) for n in (2, 3)),
        output_signature=(tf.TensorSpec([None]), tf.TensorSpec([], tf.int64)),
    )
    for dataset, message in [
        ([1], "must be a tf.data.Dataset"),
        (pairs.repeat(), "finite"),
        (pairs.take(0), "at least one example"),
        (pairs.map(lambda x, y: x), r"tensors \(x, y\)"),
        (pairs.map(lambda x, y: {"x": x, "y": y}), r"tensors \(x, y\)"),
        (pairs.map(lambda x, y: (x, x)), "unbatch"),
        (uneven, "one shape"),
    ]:
        with pytest.raises(UserError, match=message):
            Splits.from_dataset(dataset)


def test_splits_are_frozen():
    splits = Splits.from_arrays(*labelled_vectors())
    with pytest.raises(dataclasses.FrozenInstanceError):
        splits.train = None


def test_parts_of_one_s_own_must_have_the_form_of_the_training_part():
    x, y = labelled_vectors()
    train = Examples.from_arrays(x, y, columns=["a", "b", "c", "d"])
    large = np.arange(240).reshape(60, 4) + 2**24
    for part, message in [
        (Examples.from_arrays(x[:, :3], y), r"x: float32 \[4\]\. Received: x: float32 \[3\]"),
        (Examples.from_arrays(large, y), r"x: float32 \[4\]\. Received: x: int32 \[4\]"),
        (Examples.from_arrays({"v": x}, y), r"Received: x: v: float32 \[4\]"),
        (Examples.from_arrays(x, x[:, 0]), r"y: int64 \[\]\. Received: y: float32 \[1\]"),
        (Examples.from_arrays(x, y, columns=["b", "a", "c", "d"]), "columns a, b, c, d. Received"),
    ]:
        with pytest.raises(UserError, match=f"`validation` must have the form.*{message}"):
            Splits(train, part)
        with pytest.raises(UserError, match=f"`test` must have the form.*{message}"):
            Splits.cut(train, test=part)
    assert Splits(train, None, Examples.from_arrays(x + 1, y)).test.size == 60


@pytest.mark.parametrize(
    ("x", "settings"),
    [
        (np.ones((60, 4)), {}),
        (np.arange(60.0), {"order": np.zeros(60)}),
        (np.arange(60.0), {"groups": ["one"] * 60}),
    ],
)
def test_held_out_parts_that_do_not_come_are_warned_of(caplog, x, settings):
    splits = Splits.from_arrays(x, np.arange(60.0), test=0, validation=0.25, **settings)
    assert splits.validation is None
    assert caplog.text.count("`validation` is empty, although 25 %") == 1
    assert "`test`" not in caplog.text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"validation": "0.25"}, "`validation` must be a fraction.*'0.25'"),
        ({"test": None}, "`test` must be a fraction"),
        ({"seed": 1.5}, "`seed` must be a whole number. Received: 1.5"),
        ({"weights": {"y": np.ones(60)}}, "`weights` must be one array"),
        ({"columns": ["a", "b", "b", "c"]}, "`columns` must differ from each other.*'b'"),
    ],
)
def test_settings_of_another_type_are_refused_in_words(settings, message):
    with pytest.raises(UserError, match=message):
        Splits.from_arrays(*labelled_vectors(), **settings)
