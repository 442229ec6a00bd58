import itertools

import numpy as np
import pytest
import tensorflow as tf

from tfbp.data import datasets
from tfbp.data.splits import Splits
from tfbp.errors import UserError

SPEC = tf.TensorSpec((3,), tf.float32), tf.TensorSpec((), tf.int64)


def numbered(count=None):
    """Returns a dataset of different examples, without end unless `count` is given."""

    def generate():
        for number in range(count) if count else itertools.count():
            yield np.full(3, number, np.float32), number % 2

    return tf.data.Dataset.from_generator(generate, output_signature=SPEC)


def repeating(size):
    def generate():
        for number in itertools.count():
            yield np.full(3, number % size, np.float32), number % size % 2

    return tf.data.Dataset.from_generator(generate, output_signature=SPEC)


@pytest.mark.parametrize("batch", [None, 16])
def test_a_dataset_that_does_not_say_its_size_is_read_to_its_end(batch):
    dataset = numbered(300) if batch is None else numbered(300).batch(batch)
    assert dataset.cardinality() == tf.data.UNKNOWN_CARDINALITY
    x, y, weights = datasets.read(dataset)
    assert weights is None
    assert x[:, 0].tolist() == list(range(300))
    assert y.tolist() == [number % 2 for number in range(300)]


@pytest.mark.parametrize("size", [1, 10, 700])
def test_a_dataset_that_repeats_itself_is_refused_soon(size):
    with pytest.raises(UserError, match=f"repeats itself: .* only {size} differ") as error:
        Splits.from_dataset(repeating(size).batch(32))
    assert "`dataset.take(…)`" in str(error.value) and "`at_most=…`" in str(error.value)


def test_a_dataset_without_end_is_read_up_to_a_bound(monkeypatch):
    monkeypatch.setattr(datasets, "MOST", 3000)
    with pytest.raises(UserError, match="does not end: 3,008 examples, 0 MiB"):
        Splits.from_dataset(numbered().batch(32))
    monkeypatch.setattr(datasets, "_MOST_BYTES", 20 * 100)
    with pytest.raises(UserError, match="does not end: 128 examples"):
        Splits.from_dataset(numbered().batch(32))


def test_the_caller_may_say_how_many_examples_there_may_be():
    copies = repeating(5).take(3000)
    splits = Splits.from_dataset(copies, at_most=3000, classes=["a", "b"])
    assert sum(part.size for part in splits.parts().values()) == 3000
    with pytest.raises(UserError, match="does not end"):
        Splits.from_dataset(numbered(40), at_most=39)
    with pytest.raises(UserError, match="does not end"):
        nine = tf.data.Dataset.from_tensor_slices((np.eye(9), np.arange(9)))
        Splits.from_dataset(nine, at_most=8)


def test_a_dataset_that_says_that_it_is_infinite_is_refused_at_once():
    dataset = tf.data.Dataset.from_tensor_slices((np.eye(4), np.arange(4))).repeat()
    with pytest.raises(UserError, match="`dataset` must be finite"):
        Splits.from_dataset(dataset)
