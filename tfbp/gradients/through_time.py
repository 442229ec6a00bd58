"""How far back a recurrent layer's gradient reaches: ‖∂L_T/∂x_t‖ by time step t.

L_T is the loss at the last time step T, x_t the layer's input at step t. The norm shrinks or grows
by about the same factor with each step back (Bengio, Simard & Frasconi 1994, "Learning
long-term dependencies with gradient descent is difficult", sec. IV; Pascanu, Mikolov & Bengio 2013,
"On the difficulty of training recurrent neural networks", sec. 2).
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from tfbp.data import structures
from tfbp.modeling import paths


def layers(model: keras.Model) -> dict[str, keras.layers.Layer]:
    """Returns the recurrent layers of a model by path."""
    kinds = keras.layers.RNN, keras.layers.Bidirectional
    return {path: layer for path, layer in paths.layers(model) if isinstance(layer, kinds)}


def norms(model: keras.Model, loss: keras.losses.Loss) -> Callable:
    """Returns a graph function from a batch (x, y) to ‖∂L_T/∂x_t‖ of each recurrent layer.

    It returns path → float32 [time steps]: the norm over the features, of each example's own loss,
    averaged over the examples, so that it does not depend on the size of the batch. The model runs
    in inference mode, without dropout.

    Args:
        model: a built model. While it is traced `call` of its recurrent layers is replaced.
        loss: the loss of (y, outputs), a mean over the examples. If y has a label for each time
            step, only the last one counts.
    """

    @tf.function(reduce_retracing=True, autograph=False)
    def norms_of(x: Any, y: Any) -> dict[str, tf.Tensor]:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            with _watching(model, tape) as inputs:
                outputs = model(x, training=False)
            if not structures.is_nested(y) and y.dtype.is_integer and y.shape.rank > 1:
                outputs, y = outputs[:, -1:], y[:, -1:]
            count = tf.shape(tf.nest.flatten(x)[0])[0]
            total = loss(y, outputs) * tf.cast(count, tf.float32)
        gradients = tape.gradient(total, inputs, unconnected_gradients="zero")
        return {path: _mean_norm(gradient) for path, gradient in gradients.items()}

    return norms_of


@contextlib.contextmanager
def _watching(model: keras.Model, tape: tf.GradientTape) -> Iterator[dict[str, tf.Tensor]]:
    """Yields a dict that receives the watched input sequences of each recurrent layer by path."""
    inputs: dict[str, tf.Tensor] = {}
    recurrent = layers(model)

    def watched(path: str, call: Callable) -> Callable:
        def replacement(sequences: tf.Tensor, *arguments: Any, **settings: Any) -> Any:
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
    """Reduces the gradient of sequences, [batch, time steps, …], to [time steps]."""
    square = tf.square(tf.cast(gradient, tf.float32))
    features = list(range(2, gradient.shape.rank))
    return tf.reduce_mean(tf.sqrt(tf.reduce_sum(square, axis=features)), axis=0)
