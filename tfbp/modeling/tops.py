"""The top of a classifier: the layer that its probabilities, or logits, come from.

On 1,000 probabilities, most of them near zero, next to nothing can be learnt.
"""

import keras

from tfbp.modeling import keras_graph

# What keras.applications calls the last layer, also where it answers logits.
_NAMES = ("predictions", "_head_dense")


def top_of(model: keras.Model) -> keras.layers.Layer | None:
    """Returns the layer that makes a model a classifier; None if it ends in features.

    It is one if its answers, [batch, n], are those of a softmax, or of a sigmoid of one unit, or if
    its last layer is called as in keras.applications.
    """
    operation: keras.Operation | None = model
    while isinstance(operation, keras.Model):
        outputs = getattr(operation, "outputs", None) or [None]
        if len(outputs) != 1 or outputs[0] is None or len(outputs[0].shape) != 2:
            return None
        operation = keras_graph.producer(outputs[0])
    return operation if operation is not None and is_top(operation) else None


def is_top(operation: keras.Operation) -> bool:
    """Whether a layer answers the probabilities, or the logits, of classes."""
    if not isinstance(operation, keras.layers.Layer):
        return False
    name = getattr(getattr(operation, "activation", None), "__name__", "")
    softmax = name == "softmax" or isinstance(operation, keras.layers.Softmax)
    one_unit = name == "sigmoid" and getattr(operation, "units", None) == 1
    return softmax or one_unit or operation.name.casefold().endswith(_NAMES)
