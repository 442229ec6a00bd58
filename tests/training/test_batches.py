import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tfbp.data.examples import Examples, order
from tfbp.training import batches
from tfbp.workers import strategy

ONE = tf.distribute.get_strategy()


def numbered(size):
    """Returns examples whose x is their index, and whose y is twice that."""
    x = np.arange(size, dtype=np.float32)[:, np.newaxis]
    return Examples.from_arrays(x, 2 * x)


def read(examples, where=ONE, *, steps, **settings):
    """Returns for each step the replicas' (x, y, weight, share), as arrays."""
    batching = batches.Batching(**settings)
    return [
        [
            tuple(part.numpy() for part in parts)
            for parts in zip(*map(where.experimental_local_results, batch), strict=True)
        ]
        for batch in batches.training(examples, where, batching, steps)
    ]


def indices(replicas):
    return np.concatenate([x[weight > 0, 0] for x, _, weight, _ in replicas]).astype(int)


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 20), st.integers(1, 9), st.integers(0, 2**31))
def test_every_epoch_holds_each_example_once_in_an_order_of_its_own(size, batch_size, seed):
    steps = batches.steps_per_epoch(size, batch_size)
    found = read(numbered(size), batch_size=batch_size, steps=range(2 * steps), seed=seed)
    for epoch in (0, 1):
        mine = found[epoch * steps : (epoch + 1) * steps]
        expected = order(tf.range(size), size, seed, epoch).numpy()
        np.testing.assert_array_equal(np.concatenate([indices(each) for each in mine]), expected)
        assert sorted(expected) == list(range(size))
        assert [len(indices(each)) for each in mine[:-1]] == [batch_size] * (steps - 1)
    for ((x, y, weight, share),) in found:
        np.testing.assert_array_equal(y, 2 * x)
        assert weight.tolist() == [1.0] * len(x)
        assert share == 1


def test_a_run_that_goes_on_reads_what_it_would_have_read():
    whole = read(numbered(10), batch_size=4, steps=range(9), seed=1)
    rest = read(numbered(10), batch_size=4, steps=range(4, 9), seed=1)
    for ours, theirs in zip(whole[4:], rest, strict=True):
        np.testing.assert_array_equal(indices(ours), indices(theirs))


def test_the_indices_of_steps_are_those_of_the_examples_that_they_read():
    steps, batching = range(2, 8), batches.Batching(4, seed=3)
    for where in (ONE, strategy.resolve("mirrored")):
        found = read(numbered(10), where, steps=steps, batch_size=4, seed=3)
        expected = np.concatenate([indices(each) for each in found])
        np.testing.assert_array_equal(batches.indices(10, batching, steps), expected)


def test_two_replicas_share_out_each_global_batch():
    where = strategy.resolve("mirrored")
    one = read(numbered(9), batch_size=4, steps=range(6), seed=2)
    two = read(numbered(9), where, batch_size=4, steps=range(6), seed=2)
    for ours, theirs in zip(one, two, strict=True):
        np.testing.assert_array_equal(indices(ours), indices(theirs))
        for x, _, weight, share in theirs:
            assert len(x) == len(weight) >= 1
            assert share == 2 * weight.sum() / len(indices(ours))
    # The third batch has one example: a stand-in that weighs nothing fills the other slice.
    assert [part[2].tolist() for part in two[2]] == [[0.0], [1.0]]


@pytest.mark.parametrize(("count", "replicas"), [(1, 3), (2, 3), (3, 5), (4, 5), (7, 3)])
def test_what_all_replicas_read_is_the_batch_and_empty_slices_read_all_of_it(count, replicas):
    reader = batches.reader(numbered(count), batches.Batching(count, seed=2))
    step, every = tf.constant(0, tf.int64), tf.constant(replicas, tf.int64)
    read = [reader(step, tf.constant(i, tf.int64), every) for i in range(replicas)]
    weighing = np.concatenate([x.numpy().ravel() for x, _, _, share in read if share > 0])
    assert sorted(weighing) == list(range(count))
    for x, _, weight, share in read:
        if share == 0:  # Statistics over all replicas are those of the batch.
            assert sorted(x.numpy().ravel().tolist()) == list(range(count))
            assert not weight.numpy().any()


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 20), st.integers(1, 5), st.integers(1, 4))
def test_the_shares_of_an_update_are_its_batches_parts_of_its_examples(
    size, batch_size, accumulate
):
    where = strategy.resolve("mirrored")
    steps = batches.steps_per_epoch(size, batch_size)
    given = {"batch_size": batch_size, "steps": range(2 * steps), "seed": 0}
    found = read(numbered(size), where, **given, accumulate=accumulate)
    updates = batches.updates_per_epoch(size, batch_size, accumulate)
    for epoch in (0, 1):
        mine = found[epoch * steps : (epoch + 1) * steps]
        groups = [mine[first : first + accumulate] for first in range(0, steps, accumulate)]
        assert len(groups) == updates
        for group in groups:
            counts = [[weight.sum() for _, _, weight, _ in replicas] for replicas in group]
            shares = [[share for *_, share in replicas] for replicas in group]
            np.testing.assert_allclose(shares, 2 * np.array(counts) / np.sum(counts), rtol=1e-6)


def test_a_label_weighs_what_its_class_does_and_a_stand_in_nothing():
    x, labels = np.arange(5, dtype=np.float32)[:, np.newaxis], np.array([0, 1, 2, 1, 0])
    examples, weights = Examples.from_arrays(x, labels), np.array([0.5, 2.0, 3.0], np.float32)
    given = {"batch_size": 2, "steps": range(3), "seed": 0, "class_weights": weights}
    found = read(examples, strategy.resolve("mirrored"), **given)
    assert [sum(share > 0 for *_, share in replicas) for replicas in found] == [2, 2, 1]
    for replicas in found:
        for _, y, weight, share in replicas:
            np.testing.assert_array_equal(weight, weights[y] * (share > 0))


def test_weights_have_one_number_for_each_loss():
    def weights(y):
        examples = Examples.from_arrays(np.zeros((3, 2), np.float32), y)
        (((_, _, weight, _),),) = read(examples, batch_size=3, steps=range(1), seed=0)
        return weight.shape

    assert weights(np.arange(3)) == (3,)
    assert weights(np.zeros((3, 4))) == (3,)  # a vector has one loss
    tokens = Examples(
        lambda rows: (tf.gather(tf.ones([3, 5], tf.int32), rows),) * 2,
        spec=(tf.TensorSpec([5], tf.int32),) * 2,
        hashes=np.array([b"a", b"b", b"c"]),
        targets=np.ones((3, 5), np.int32),
    )
    (((_, _, weight, _),),) = read(tokens, batch_size=3, steps=range(1), seed=0)
    assert weight.shape == (3, 1)


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 20), st.integers(1, 9), st.sampled_from(["one", "mirrored"]))
def test_evaluation_reads_each_example_once_in_its_own_order(size, batch_size, name):
    where = strategy.resolve(name)
    read, positions = [], []
    for batch in batches.evaluation(numbered(size), where, batch_size=batch_size):
        for x, _, indices in zip(*map(where.experimental_local_results, batch), strict=True):
            assert len(x) == max(1, len(indices))
            read.append(x.numpy()[: len(indices), 0])
            positions.append(indices.numpy())
    np.testing.assert_array_equal(np.concatenate(read), np.arange(size))
    np.testing.assert_array_equal(np.concatenate(positions), np.arange(size))


def test_small_rows_are_read_in_place_like_those_of_a_dataset():
    options = {"batch_size": 4, "steps": range(2, 9), "seed": 3, "accumulate": 2}
    in_place = read(numbered(10), **options)
    mapped = numbered(10).mapped(lambda x: x, tf.TensorSpec([1]))
    for ours, theirs in zip(in_place, read(mapped, **options), strict=True):
        for one, other in zip(*ours, *theirs, strict=True):
            np.testing.assert_array_equal(one, other)


def test_rows_are_read_in_place_only_where_that_is_a_copy():
    def in_place(examples, where=ONE, batch_size=4):
        found = batches.training(examples, where, batches.Batching(batch_size), range(1))
        return isinstance(found, batches._InPlace)

    examples = numbered(10)
    assert in_place(examples)
    assert in_place(examples.take([1, 2]))
    assert not in_place(examples, strategy.resolve("mirrored"))
    assert not in_place(examples, batch_size=batches.SMALL // 8 + 1)
    assert not in_place(examples.augmented(lambda x, seed: x))
    assert not in_place(examples.mapped(lambda x: x, tf.TensorSpec([1])))


def test_each_pass_over_rows_in_place_begins_anew():
    found = batches.training(numbered(10), ONE, batches.Batching(4), range(1, 4))
    first, second = ([x.numpy() for x, *_ in found] for _ in range(2))
    assert len(first) == 3
    np.testing.assert_array_equal(np.concatenate(first), np.concatenate(second))
