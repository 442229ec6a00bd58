"""The next token, drawn from logits."""

import numpy as np
import tensorflow as tf


def draw(
    logits: tf.Tensor, *, temperature: tf.Tensor, top_k: tf.Tensor, seed: tf.Tensor
) -> tf.Tensor:
    """Returns one token for each row, drawn from softmax(logits / temperature). A graph function.

    The largest of logits + temperature · g is such a draw when g are independent standard Gumbel
    variables (Gumbel 1954; the "Gumbel-max trick"), and at temperature 0 it is the likeliest token,
    with no division. All rows share g: what is drawn for a row never depends on its neighbours.

    Args:
        logits: float32 [batch, vocabulary].
        temperature: float32 [], at least 0.
        top_k: int32 []; when positive, only the k likeliest tokens are drawn from.
        seed: int64 [2].

    Returns:
        int32 [batch].
    """
    size = tf.shape(logits)[-1]
    kept = tf.where(top_k > 0, tf.minimum(top_k, size), size)
    least = tf.math.top_k(logits, kept).values[:, -1:]
    # The algorithm is named, since the default one depends on the device.
    uniform = tf.random.stateless_uniform(
        [size], seed, minval=np.finfo(np.float32).tiny, alg="philox"
    )
    gumbel = -tf.math.log(-tf.math.log(uniform))
    noisy = logits + temperature * gumbel
    return tf.argmax(tf.where(logits < least, -float("inf"), noisy), axis=-1, output_type=tf.int32)
