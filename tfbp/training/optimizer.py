"""The one seam of the update: reduce over replicas → clip → Keras's own update rule."""

import contextlib
import threading
from collections.abc import Iterator

import keras
import tensorflow as tf

from tfbp.training.phase import OPTIMIZERS, Phase


def build(phase: Phase, steps: int) -> "Update":
    """Returns the optimizer of a phase.

    Args:
        phase: its settings.
        steps: updates in the whole phase, the length of its schedule.
    """
    rate = float(phase.learning_rate)
    if phase.schedule == "cosine":
        rate = keras.optimizers.schedules.CosineDecay(rate, decay_steps=steps)
    rule = OPTIMIZERS[phase.optimizer](rate, weight_decay=phase.weight_decay)
    rule.weight_decay = phase.weight_decay or None  # which AdamW does not take itself
    return Update(rule, clip_norm=phase.clip_norm)


class Update(keras.optimizers.Optimizer):
    """Weighs, sums and clips gradients over the global batch, then hands them to Keras's rule.

    Keras means over each replica's examples, then over replicas, and clips on each replica alone.
    That is the gradient of the global batch only while all replicas hold equally many examples.
    Here a replica's gradient counts by its share of the global batch, and the sum is clipped.

    Args:
        rule: the Keras optimizer whose update is applied.
        clip_norm: largest norm of the gradient of all variables together; None: no clipping.
    """

    def __init__(self, rule: keras.optimizers.Optimizer, clip_norm: float | None = None):
        super().__init__(learning_rate=0.0, name="update")
        self.rule = rule
        self.clip_norm = clip_norm
        # tf.distribute traces each replica in a thread of its own, and switches between them.
        self._local = threading.local()

    @contextlib.contextmanager
    def weighing(self, share: tf.Tensor) -> Iterator[None]:
        """Makes `apply` weigh the gradients that it gets by `share` while the block is traced.

        Args:
            share: float32 scalar: this replica's examples × replicas / examples of the global
                batch, 1 when the batch divides evenly.
        """
        self._local.share = share
        try:
            yield
        finally:
            del self._local.share

    def build(self, variables):
        self.rule.build(variables)
        super().build(variables)

    def apply(self, grads, trainable_variables=None):
        """Applies one update. `grads` are of this replica's mean loss over the replica count."""
        variables = list(trainable_variables or self._trainable_variables)
        if not self.built:
            self.build(variables)
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        if replicas > 1:
            grads = self._global(grads, replicas)
        if self.clip_norm is not None:
            known = [gradient for gradient in grads if gradient is not None]
            clipped = iter(tf.clip_by_global_norm(known, self.clip_norm)[0])
            grads = [None if gradient is None else next(clipped) for gradient in grads]
        if replicas > 1:
            # Keras sums over the replicas once more: each hands on its part of the sum.
            grads = [None if gradient is None else gradient / replicas for gradient in grads]
        self.rule.apply(grads, variables)

    def _global(self, grads, replicas):
        weighed = [
            tf.convert_to_tensor(gradient) * tf.cast(self._local.share, gradient.dtype)
            for gradient in grads
            if gradient is not None
        ]
        context = tf.distribute.get_replica_context()
        summed = iter(context.all_reduce(tf.distribute.ReduceOp.SUM, weighed))
        return [None if gradient is None else next(summed) for gradient in grads]

    def scale_loss(self, loss):
        return self.rule.scale_loss(loss)

    @property
    def variables(self):
        return self.rule.variables

    @property
    def iterations(self):
        return self.rule.iterations

    @property
    def learning_rate(self):
        return self.rule.learning_rate

    @learning_rate.setter
    def learning_rate(self, value):
        self.rule.learning_rate = value

    def get_config(self):
        return {
            "rule": keras.saving.serialize_keras_object(self.rule),
            "clip_norm": self.clip_norm,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        rule = keras.saving.deserialize_keras_object(config["rule"], custom_objects)
        return cls(rule, clip_norm=config["clip_norm"])
