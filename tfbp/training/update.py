"""The update of the weights: weigh → accumulate → reduce over replicas → check → clip → Keras's own
rule → average.
"""

import contextlib
import threading
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfbp.modeling import keras_graph
from tfbp.training.phase import CLIPPING, Phase

# The first scale of a loss in float16, and after how many finite updates it is doubled: those of
# keras.optimizers.LossScaleOptimizer, by the method of Micikevicius et al. 2018, sec. 3.2.
LOSS_SCALE = 2.0**15
UPDATES_TO_DOUBLE = 2000


class Update(keras.optimizers.Optimizer):
    """Makes one gradient of all examples of an update, and hands it to Keras's rule.

    Keras averages over each replica's examples, then over replicas, and clips on each replica
    alone. That is the gradient of the global batch only if all replicas have equally many examples.
    Here a replica's gradient counts by its share of the examples, and the sum is clipped.

    Args:
        rule: the Keras optimizer whose update is applied, a `GradientsAreSums`.
        phase: says how to clip, accumulate, decay and average.
        factors: of the rule's rate, by the id of the Keras variable; 1 for others.
        scale_loss: whether the loss is scaled, as gradients in float16 need; an update with a
            gradient that is not finite is left out.

    Attributes:
        accumulate: batches of one update.
        deferred: whether `apply` only adds gradients up, so that `update` must follow.
        skipped: updates left out because they were not finite, see `skip_not_finite`.
    """

    def __init__(
        self,
        rule: keras.optimizers.Optimizer,
        phase: Phase,
        factors: Mapping[int, float],
        *,
        scale_loss: bool = False,
    ):
        super().__init__(learning_rate=0.0, name="update")
        self.rule = rule
        self.accumulate = phase.accumulate
        self.deferred = phase.accumulate > 1 or scale_loss
        self._phase, self._factors = phase, factors
        self._averages: list[keras.Variable] = []
        self._sums: list[tf.Variable] = []
        self._scaling: list[keras.Variable] = []
        self._summed: set[int] = set()  # indices of the variables that get gradients
        self._skipping = False
        self._skipped = self.add_variable((), dtype="int32", name="skipped_updates")
        if scale_loss:
            initial = keras.initializers.Constant(LOSS_SCALE)
            self._scale = self.add_variable((), initial, "float32", name="scale")
            self._finite = self.add_variable((), dtype="int32", name="finite_updates")
            self._scaling = [self._scale, self._finite]
        # tf.distribute traces each replica in a thread of its own, and switches between them.
        self._local = threading.local()

    @contextlib.contextmanager
    def weighing(self, share: tf.Tensor) -> Iterator[None]:
        """While the block is traced, `apply` multiplies gradients by `share`.

        Args:
            share: float32 scalar: this replica's examples × replicas / examples of the update; 1 if
                an update is one batch that divides evenly.
        """
        self._local.share, self._local.scale = share, 1.0
        try:
            yield
        finally:
            del self._local.share, self._local.scale

    def build(self, variables: list[keras.Variable]) -> None:
        self.rule.build(variables)
        self.rule.factors = tuple(self._factors.get(id(each), 1.0) for each in variables)
        super().build(variables)
        if self._phase.ema is not None:
            self._averages = [self.add_variable_from_reference(v, "average") for v in variables]
        if self.deferred:
            self._make_sums()

    def _make_sums(self) -> None:
        self._sums = [
            tf.Variable(
                tf.zeros(variable.shape, variable.dtype),
                trainable=False,
                # Each replica adds up its own gradients: they are reduced once per update.
                synchronization=tf.VariableSynchronization.ON_READ,
                aggregation=tf.VariableAggregation.SUM,
            )
            for variable in self._trained
        ]

    def skip_not_finite(self) -> None:
        """Makes `update` leave out, and count, each update that is not finite.

        To be called in the strategy's scope, after `build` and before steps are traced.
        """
        self._skipping = True
        if not self.deferred:
            self.deferred = True
            self._make_sums()

    def apply(
        self,
        grads: Sequence[tf.Tensor | None],
        trainable_variables: Sequence[keras.Variable] | None = None,
    ) -> None:
        """Applies one update, or adds gradients up for it.

        Args:
            grads: of this replica's mean loss divided by the replica count; None: not connected.
        """
        if not self.built:
            self.build(list(trainable_variables or ()))
        variables = trainable_variables or self._trained
        pairs = [
            (gradient, variable)
            for gradient, variable in zip(grads, variables, strict=True)
            if gradient is not None
        ]
        if self.deferred:
            for gradient, variable in pairs:
                index = keras_graph.variable_index(self, variable)
                self._sums[index].assign_add(self._weigh(gradient))
                self._summed.add(index)
        elif self._weighs:
            self._apply([(self._weigh(gradient), variable) for gradient, variable in pairs])
        else:
            self._apply(pairs)

    @property
    def _trained(self) -> list[keras.Variable]:
        return keras_graph.trained_variables(self)

    @property
    def _weighs(self) -> bool:
        """Whether a batch is not the whole update."""
        return self.deferred or tf.distribute.get_strategy().num_replicas_in_sync > 1

    def update(
        self, strategy: tf.distribute.Strategy, finite: tf.Tensor | bool = True
    ) -> tf.Tensor:
        """Applies the gradients that `apply` has added up, between two runs of the strategy.

        Args:
            finite: whether the loss of all batches of the update is; if not, it is left out.

        Returns:
            bool []: `finite`; after `skip_not_finite`, whether the gradients are finite too, except
            for those that only overflow in float16 because of the loss scale.
        """
        finite, wrong = tf.convert_to_tensor(finite), tf.constant(False)
        if self._scaling or self._skipping:
            wrong = strategy.reduce("SUM", strategy.run(self._not_finite), axis=None) > 0
        if self._skipping:
            scaled = self._scale > 1 if self._scaling else False
            finite &= ~wrong | scaled
        tf.cond(finite, lambda: self._go_on(strategy, wrong), self._skip)
        strategy.run(self._clear)
        return finite

    def _weigh(self, gradient: tf.Tensor) -> tf.Tensor:
        if self._local.share is None and not self._scaling:
            return tf.convert_to_tensor(gradient)
        share = 1.0 if self._local.share is None else self._local.share
        factor = share / self._local.scale
        return tf.convert_to_tensor(gradient) * tf.cast(factor, gradient.dtype)

    def _apply(self, pairs: Sequence[tuple[tf.Tensor, keras.Variable]]) -> None:
        if not pairs:
            return
        grads, variables = map(list, zip(*pairs, strict=True))
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        if replicas > 1:
            context = tf.distribute.get_replica_context()
            grads = context.all_reduce(tf.distribute.ReduceOp.SUM, grads)
        grads = _clip(grads, self._phase)
        self.rule.apply(grads, variables)
        if replicas > 1 and not self.rule.knows_sums:
            raise RuntimeError("This version of Keras would sum the gradients of replicas twice.")
        if self._averages:
            tf.distribute.get_replica_context().merge_call(self._average)

    def _average(self, strategy: tf.distribute.Strategy) -> None:
        """Updates the averages, once for all replicas."""
        momentum = tf.where(self.rule.iterations > 1, self._phase.ema, 0.0)

        def move(average: tf.Variable, variable: tf.Tensor, momentum: tf.Tensor) -> None:
            momentum = tf.cast(momentum, variable.dtype)
            average.assign(momentum * average + (1 - momentum) * variable)

        for average, variable in zip(self._averages, self._trained, strict=True):
            arguments = variable.value, momentum
            strategy.extended.update(average.value, move, arguments, group=False)

    def _apply_sums(self) -> None:
        self._apply([(self._sums[i].read_value(), self._trained[i]) for i in self._summed])

    def _clear(self) -> None:
        for total in self._sums:
            total.assign(tf.zeros_like(total))

    def _not_finite(self) -> tf.Tensor:
        return tf.add_n([tf.math.count_nonzero(~tf.math.is_finite(total)) for total in self._sums])

    def _skip(self) -> None:
        if self._skipping:
            self._skipped.assign_add(1)

    def _go_on(self, strategy: tf.distribute.Strategy, wrong: tf.Tensor) -> None:
        if self._scaling:
            tf.cond(wrong, self._scale_less, lambda: self._apply_scaled(strategy))
        else:
            strategy.run(self._apply_sums)

    def _scale_less(self) -> None:
        self._scale.assign(self._scale / 2)
        self._finite.assign(0)

    def _apply_scaled(self, strategy: tf.distribute.Strategy) -> None:
        strategy.run(self._apply_sums)
        double = self._finite + 1 == UPDATES_TO_DOUBLE
        self._scale.assign(tf.where(double, self._scale * 2, self._scale))
        self._finite.assign(tf.where(double, 0, self._finite + 1))

    def scale_loss(self, loss: tf.Tensor) -> tf.Tensor:
        """Returns the loss that `train_step` differentiates: weighed by the share, and scaled.

        If a `train_step` does not call this, its gradients are weighed instead. The two differ when
        replicas exchange values inside the model, as a synchronized BatchNormalization does: a
        gradient that comes back from another replica counts by that one's share.
        """
        share = getattr(self._local, "share", None)
        if share is not None and self._weighs:
            loss, self._local.share = loss * tf.cast(share, loss.dtype), None
        if not self._scaling:
            return loss
        self._local.scale = self._scale
        return tf.cast(loss, tf.float32) * self._scale

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Within it, the model's weights are their averages, if the phase has `ema`."""
        variables = self._trained if self._averages else []
        kept = [variable.numpy() for variable in variables]
        self.settle()
        try:
            yield
        finally:
            _assign(variables, kept)

    def settle(self) -> None:
        """Assigns the averages to the model, if the phase has `ema` and there have been updates."""
        if self._averages and self.iterations.numpy():
            _assign(self._trained, [average.numpy() for average in self._averages])

    @property
    def scales_loss(self) -> bool:
        """Whether the loss is scaled, and updates with gradients that overflow are left out."""
        return bool(self._scaling)

    @property
    def variables(self) -> list[keras.Variable]:
        return [*self.rule.variables, *self._averages, self._skipped, *self._scaling]

    @property
    def skipped(self) -> int:
        return int(self._skipped.numpy())

    def save_own_variables(self, store: MutableMapping[str, np.ndarray]) -> None:
        """Saves the state as Keras's own optimizer has it, at a constant rate, the one of now.

        A model that a callback saves in a phase so loads by Keras alone.
        """
        rate = self.learning_rate
        slots = self.rule.variables[2 if isinstance(rate, keras.Variable) else 1 :]
        for i, value in enumerate((self.iterations, rate, *slots)):
            store[str(i)] = np.asarray(value)

    @property
    def iterations(self) -> keras.Variable:
        return self.rule.iterations

    @property
    def learning_rate(self) -> Any:
        return self.rule.learning_rate

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        self.rule.learning_rate = value


def _clip(grads: list[tf.Tensor], phase: Phase) -> list[tf.Tensor]:
    if not any(getattr(phase, name) for name in CLIPPING):
        return grads
    # An embedding's gradient may list a row twice: only the sum of both is the row's gradient.
    grads = [tf.convert_to_tensor(gradient) for gradient in grads]
    if phase.clip_value:
        return [tf.clip_by_value(each, -phase.clip_value, phase.clip_value) for each in grads]
    if phase.clip_variable_norm:
        return [tf.clip_by_norm(each, phase.clip_variable_norm) for each in grads]
    return tf.clip_by_global_norm(grads, phase.clip_norm)[0]


def _assign(variables: Iterable[keras.Variable], values: Iterable[np.ndarray]) -> None:
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
