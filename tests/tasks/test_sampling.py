import numpy as np
import tensorflow as tf

from tfbp.tasks import sampling

LOGITS = np.float32([[0.0, 1.0, 2.0, -1.0, 1.5]])


@tf.function
def draws(temperature, top_k, count):
    def draw(step):
        return sampling.draw(
            tf.constant(LOGITS), temperature=temperature, top_k=top_k, seed=tf.stack([7, step])
        )

    return tf.map_fn(draw, tf.range(count, dtype=tf.int64), fn_output_signature=tf.int32)[:, 0]


def frequencies(temperature, top_k, count=4000):
    drawn = draws(tf.constant(temperature), tf.constant(top_k), tf.constant(count, tf.int64))
    return np.bincount(drawn, minlength=5) / count


def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum()


def test_tokens_are_drawn_by_the_softmax():
    for temperature in (0.5, 1.0, 2.0):
        expected = softmax(LOGITS[0] / temperature)
        # Four standard deviations of a share out of 4,000 draws are at most 0.032.
        np.testing.assert_allclose(frequencies(temperature, 0), expected, atol=0.032)


def test_top_k_leaves_the_others_out():
    expected = softmax(np.where(LOGITS[0] >= 1.5, LOGITS[0], -np.inf))
    np.testing.assert_allclose(frequencies(1.0, 2), expected, atol=0.032)


def test_temperature_zero_takes_the_likeliest():
    assert frequencies(0.0, 0, count=20)[2] == 1
