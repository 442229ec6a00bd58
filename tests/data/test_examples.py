import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tfbp.data.augmentation import augmentation
from tfbp.data.examples import Examples, order
from tfbp.errors import UserError


def labelled_vectors(count=60, classes=3, seed=0):
    x = np.random.default_rng(seed).normal(size=(count, 4)).astype(np.float32)
    return x, np.arange(count) % classes


def every(examples):
    x, y = examples.read(np.arange(examples.size))
    return x.numpy(), y.numpy()


@given(st.integers(1, 3000), st.integers(0, 2**62), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_an_epoch_has_each_example_once(size, seed, epoch):
    indices = order(tf.range(size), size, seed, epoch).numpy()
    assert indices.dtype == np.int64
    assert np.array_equal(np.sort(indices), np.arange(size))


@given(st.integers(1, 200), st.integers(1, 7), st.data())
@settings(max_examples=60, deadline=None)
def test_an_order_read_from_anywhere_and_by_any_number_of_workers_is_the_same(size, workers, data):
    whole = order(np.arange(size), size, 3, 4).numpy()
    start = data.draw(st.integers(0, size - 1))
    assert np.array_equal(order(np.arange(start, size), size, 3, 4).numpy(), whole[start:])
    for worker in range(min(workers, size)):
        shard = np.arange(worker, size, workers)
        assert np.array_equal(order(shard, size, 3, 4).numpy(), whole[shard])


def test_epochs_and_seeds_have_different_orders():
    orders = {tuple(order(range(50), 50, *key).numpy()) for key in [(0, 0), (0, 1), (1, 0), (1, 1)]}
    assert len(orders) == 4


def test_the_order_is_a_graph_function_of_seed_and_epoch():
    in_graph = tf.function(lambda epoch: order(tf.range(20), 20, 5, epoch))
    assert np.array_equal(in_graph(tf.constant(7)), order(range(20), 20, 5, 7))


def test_arrays_are_read_by_index_and_stay_uint8_in_memory():
    x = np.random.default_rng(0).integers(0, 256, (5, 2, 3, 1), np.uint8)
    examples = Examples.from_arrays(x, [0, 1, 0, 1, 1])
    images, labels = tf.function(examples.read)(tf.constant([4, 0]))
    assert np.array_equal(images, x[[4, 0]].astype(np.float32))
    assert labels.numpy().tolist() == [1, 0]
    assert examples.spec == (
        tf.TensorSpec((2, 3, 1), tf.float32),
        tf.TensorSpec((), tf.int64),
    )
    assert examples.labels.tolist() == [0, 1, 0, 1, 1]


def test_values_are_columns_and_have_no_labels():
    examples = Examples.from_arrays([1.0, 2.0], [3.0, 4.0])
    x, y = every(examples)
    assert x.tolist() == [[1.0], [2.0]]
    assert y.tolist() == [[3.0], [4.0]]
    assert y.dtype == np.float32
    assert examples.labels is None


def test_taken_examples_keep_their_contents_names_and_hashes():
    x, y = labelled_vectors()
    taken = Examples.from_arrays(x, y).take([5, 50, 7]).take([2, 1])
    assert np.array_equal(every(taken)[0], x[[7, 50]])
    assert taken.labels.tolist() == y[[7, 50]].tolist()
    assert [taken.name(0), taken.name(1)] == ["row 7", "row 50"]
    assert taken.fingerprint == Examples.from_arrays(x[[7, 50]], y[[7, 50]]).fingerprint


def test_fingerprints_tell_contents_targets_order_and_shape_apart():
    x, y = labelled_vectors()
    variants = [
        Examples.from_arrays(x, y),
        Examples.from_arrays(x + 1, y),
        Examples.from_arrays(x, (y + 1) % 3),
        Examples.from_arrays(x[::-1], y[::-1]),
        Examples.from_arrays(x.reshape(-1, 2, 2), y),
    ]
    assert len({examples.fingerprint for examples in variants}) == len(variants)
    assert Examples.from_arrays(x.copy(), y.copy()).fingerprint == variants[0].fingerprint


def test_augmentation_depends_on_seed_epoch_and_index_alone():
    def noise(x, seed):
        return x + tf.random.stateless_normal(tf.shape(x), seed)

    examples = Examples.from_arrays(*labelled_vectors()).augmented(noise)
    read = tf.function(examples.read_augmented)
    x, _ = read(tf.constant([3, 8]), 0, 0)
    assert np.array_equal(read(tf.constant([8, 1, 3]), 0, 0)[0].numpy()[[2, 0]], x)
    assert not np.array_equal(read(tf.constant([3, 8]), 0, 1)[0], x)
    assert not np.array_equal(read(tf.constant([3, 8]), 1, 0)[0], x)
    change = x - examples.read([3, 8])[0]
    assert not np.allclose(change[0], change[1])


def test_epochs_cycle_through_views_and_each_example_may_have_an_epoch_of_its_own():
    def noise(x, seed):
        return x + tf.random.stateless_normal(tf.shape(x), seed)

    fresh = Examples.from_arrays(*labelled_vectors()).augmented(noise)
    views = fresh.in_views(3)
    expected = [fresh.read_augmented([5, 2], 7, epoch)[0] for epoch in range(3)]
    for epoch in range(7):
        assert np.array_equal(views.read_augmented([5, 2], 7, epoch)[0], expected[epoch % 3])
    mixed, _ = views.read_augmented([5, 2, 5], 7, tf.constant([2, 1, 3], tf.int64))
    assert np.array_equal(mixed, [expected[2][0], expected[1][1], expected[0][0]])
    assert not np.array_equal(fresh.read_augmented([5, 2], 7, 3)[0], expected[0])


def test_without_augmentation_both_reads_are_the_same():
    examples = Examples.from_arrays(*labelled_vectors())
    assert np.array_equal(examples.read_augmented([1, 2], 0, 0)[0], examples.read([1, 2])[0])


def test_labels_in_a_column_are_labels():
    x, y = labelled_vectors()
    assert np.array_equal(Examples.from_arrays(x, y[:, np.newaxis]).labels, y)


def test_a_transform_that_does_not_take_the_examples_is_refused_at_once():
    examples = Examples.from_arrays(*labelled_vectors())
    with pytest.raises(UserError, match="`transform` must take the examples"):
        examples.augmented(augmentation(flip=True))
