"""One step of a model, by its `train_step`: Keras's, or the model's own."""

from typing import Any

import keras
import tensorflow as tf

from tfbp.data.examples import Examples
from tfbp.errors import UserError


def weighed_by(examples: Examples, class_weights: Any, strategy: tf.distribute.Strategy) -> str:
    """Says why the examples of a batch do not all count alike; "" if they do."""
    if examples.weights is not None:
        return "the examples have weights"
    if class_weights is not None:
        return "classes have weights"
    return "devices share a batch unevenly" if strategy.num_replicas_in_sync > 1 else ""


def take(model: keras.Model, x: Any, y: Any, weight: tf.Tensor, *, weighed: str) -> None:
    """Calls `model.train_step` with (x, y, weight).

    One that begins with `x, y = data`, as in Keras's guide, gets these two, as `fit` gives them.

    Args:
        weighed: see `weighed_by`.

    Raises:
        tfbp.UserError: it would leave out weights that count.
    """
    try:
        model.train_step((x, y, weight))
        return
    except ValueError as error:
        if not str(error).startswith("too many values to unpack (expected 2"):
            raise
    if weighed:
        raise UserError(
            f"`model` has a `train_step` that takes (x, y) without weights, and {weighed}. Let it "
            "begin with `x, y, weight = data`, and weigh its loss: "
            "`self.compute_loss(x, y, outputs, weight)`."
        )
    model.train_step((x, y))
