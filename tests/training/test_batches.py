import numpy as np
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tfbp.data.examples import Examples, order
from tfbp.training import batches, strategy

ONE = tf.distribute.get_strategy()


def numbered(size):
    """Returns examples whose x is their index, and whose y is twice that."""
    x = np.arange(size, dtype=np.float32)[:, np.newaxis]
    return Examples.from_arrays(x, 2 * x)


def read(examples, where=ONE, **settings):
    """Returns for each step the replicas' (x, y, weight, share), as arrays."""
    return [
        [
            tuple(part.numpy() for part in parts)
            for parts in zip(*map(where.experimental_local_results, batch), strict=True)
        ]
        for batch in batches.training(examples, where, **settings)
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
    found = [
        x.numpy()[:count, 0]
        for x, _, count in (
            parts
            for batch in batches.evaluation(numbered(size), where, batch_size=batch_size)
            for parts in zip(*map(where.experimental_local_results, batch), strict=True)
        )
        if len(x) == max(1, count)
    ]
    np.testing.assert_array_equal(np.concatenate(found), np.arange(size))
