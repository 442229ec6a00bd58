"""How far back a recurrent layer's gradient reaches: ‖∂L_T/∂x_t‖ by time step t.

L_T is the loss at the last time step T, x_t what goes into the layer at step t. Its norm shrinks or
grows by about the same factor with each step back (Bengio, Simard & Frasconi 1994, "Learning
long-term dependencies with gradient descent is difficult", sec. IV; Pascanu, Mikolov & Bengio 2013,
"On the difficulty of training recurrent neural networks", sec. 2).
"""

import contextlib
from collections.abc import Callable, Iterator

import keras
import tensorflow as tf

from tfbp.modeling import paths


def layers(model: keras.Model) -> dict[str, keras.layers.Layer]:
    """Returns path → layer of the recurrent layers of a model."""
    kinds = keras.layers.RNN, keras.layers.Bidirectional
    return {path: layer for path, layer in paths.layers(model) if isinstance(layer, kinds)}


def norms(model: keras.Model, loss: keras.losses.Loss) -> Callable:
    """Returns a graph function from a batch (x, y) to ‖∂L_T/∂x_t‖ of each recurrent layer.

    Its answer is path → float32 [time steps]: the norm over the features, of each example's own
    loss, as the mean over the examples, so that it does not depend on the size of the batch. The
    model is asked in inference mode, without dropout.

    Args:
        model: a built model. While it is traced `call` of its recurrent layers is replaced.
        loss: the loss of (y, outputs), a mean over the examples. Where y has a label for each time
            step, that of the last one counts alone.
    """

    @tf.function(reduce_retracing=True)
    def measure(x, y):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            with _watching(model, tape) as inputs:
                outputs = model(x, training=False)
            if y.dtype.is_integer and y.shape.rank > 1:
                outputs, y = outputs[:, -1:], y[:, -1:]
            total = loss(y, outputs) * tf.cast(tf.shape(x)[0], tf.float32)
        found = tape.gradient(total, inputs, unconnected_gradients="zero")
        return {path: _mean_norm(gradient) for path, gradient in found.items()}

    return measure


@contextlib.contextmanager
def _watching(model: keras.Model, tape: tf.GradientTape) -> Iterator[dict[str, tf.Tensor]]:
    """Yields a dict that receives path → the sequences that go into a recurrent layer, watched."""
    inputs: dict[str, tf.Tensor] = {}
    recurrent = layers(model)

    def watched(path, call):
        def replacement(sequences, *arguments, **settings):
            sequences = tf.identity(sequences)
            tape.watch(sequences)
            inputs.setdefault(path, sequences)
            return call(sequences, *arguments, **settings)

        return replacement

    for path, layer in recurrent.items():
        layer.call = watched(path, layer.call)
    try:
        yield inputs
    finally:
        for layer in recurrent.values():
            del layer.call


def _mean_norm(gradient: tf.Tensor) -> tf.Tensor:
    """Returns [time steps] from the gradient of sequences, [batch, time steps, …]."""
    square = tf.square(tf.cast(gradient, tf.float32))
    features = list(range(2, gradient.shape.rank))
    return tf.reduce_mean(tf.sqrt(tf.reduce_sum(square, axis=features)), axis=0)
