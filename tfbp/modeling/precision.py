"""The precision of a model's arithmetic, and how far two computations of its answers may differ."""

import contextlib
from collections.abc import Iterator

import keras

from tfbp.modeling import keras_graph

# The distance from 1 to the next number.
EPSILON = {"float16": 2.0**-10, "bfloat16": 2.0**-7}
# So many of these distances. Measured between a model and its export in a fresh process, which
# fuses layers and so rounds elsewhere, in either format: ResNet50V2 with random weights 3, dense
# layers 2, VGG16 and an LSTM less than 1.
ROUNDINGS = 8


def tolerance(model: keras.Model, full: float) -> float:
    """Returns how far two computations of a model's answers may be apart.

    Args:
        full: the share of their largest magnitude that is allowed in float32 throughout.

    Returns:
        `full`, or where a layer computes in half precision 8 times the distance from 1 to the next
        number there, whichever is more.
    """
    formats = {layer.compute_dtype for layer in keras_graph.all_layers(model)}
    return max([full, *(ROUNDINGS * EPSILON[name] for name in formats & EPSILON.keys())])


@contextlib.contextmanager
def policy(name: str) -> Iterator[None]:
    """Within it, layers are made with this dtype policy of Keras."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
