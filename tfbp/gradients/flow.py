"""Gradient flow: the size of gradients and updates, by layer and by time step."""

import math
import os
import pathlib
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from tfbp.gradients import recorder as gradient_recorder
from tfbp.gradients import through_time
from tfbp.modeling import paths
from tfbp.training import own_step
from tfbp.training.phase import Phase

# A gradient has vanished if it is smaller at the first layer or time step than at the last by this
# factor, and exploded if its norm is larger than this: Bengio et al. 1994; Pascanu et al. 2013.
VANISHING = 1e-4
EXPLODING = 1e3
# Columns of a recurrent layer at most; longer sequences are logged at evenly spaced steps.
TIME_STEPS = 64


class GradientFlow(keras.callbacks.Callback):
    """Logs norms every N updates of a phase, beginning with its first one.

    - `gradient_norm/<layer path>`: of the gradient over all examples of the update, as the model's
      `train_step` hands it to the optimizer, before clipping.
    - `update_norm/<layer path>`: of the change that the update makes to the layer's trainable
      weights.
    - `input_gradient_norm/<layer path>/<t>`, t from 1: ‖∂L_T/∂x_t‖ of a recurrent layer, see
      `tfbp.gradients.through_time`; of the update's first batch (on its first replica).

    A row of the history gets the epoch's last values, if the epoch had such an update. In
    TensorBoard's run `gradients` the step is the number of updates before. A vanishing gradient, by
    layer or by time step, and an exploding one are warned of once a phase each.

    Training is not affected: each gradient is computed a second time, on a tape of its own, and all
    variables are restored.

    Args:
        phase: what is trained.
        every: updates from one measurement to the next, at least 1.
        read: see `tfbp.training.batches.reader`.
        weighed: see `tfbp.training.own_step.weighed_by`.
        loss: what `train_step` minimizes, of (y, outputs), a mean over examples.
        strategy: the one that the model trains on.
        rows: the history, to which `Rows` appends before this callback's `on_epoch_end`.
        folder: receives the TensorBoard run `gradients`; None: no logs.
    """

    def __init__(
        self,
        phase: Phase,
        every: int,
        *,
        read: Callable,
        weighed: str,
        loss: keras.losses.Loss,
        strategy: tf.distribute.Strategy,
        rows: list[dict],
        folder: str | os.PathLike | None = None,
    ):
        super().__init__()
        self._phase, self._every = phase, every
        self._read, self._weighed = read, weighed
        self._loss, self._strategy = loss, strategy
        self._rows, self._folder = rows, folder
        self._writer: tf.summary.SummaryWriter | None = None
        self._latest: dict[str, float] = {}
        self._before: list[tf.Tensor] | None = None
        self._warned: set[str] = set()

    def get_state(self) -> dict:
        """The state for a run that goes on inside an epoch, a JSON value."""
        return {"latest": dict(self._latest), "warned": sorted(self._warned)}

    def set_state(self, state: dict) -> None:
        self._latest, self._warned = dict(state["latest"]), set(state["warned"])

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        by_id = {id(variable): i for i, variable in enumerate(self.model.trainable_variables)}
        self._indices = {
            path: indices
            for path, layer in paths.with_weights(self.model).items()
            if (indices := [by_id[id(each)] for each in layer.variables if id(each) in by_id])
        }
        self._gradients = _gradients(self.model, self._strategy, self._read, self._weighed)
        self._by_time = _by_time(self.model, self._strategy, self._read, self._loss)
        if self._folder is not None:
            folder = pathlib.Path(self._folder) / "gradients"
            self._writer = tf.summary.create_file_writer(str(folder), flush_millis=10_000)

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self._epoch, self._latest, self._before = epoch, {}, None

    def on_train_batch_begin(self, batch: int, logs: dict[str, float] | None = None) -> None:
        in_epoch, accumulate = self.params["steps"], self._phase.accumulate
        self._update = self._epoch * -(-in_epoch // accumulate) + batch // accumulate
        if self._update % self._every:
            return
        first = self._epoch * in_epoch
        steps = range(first + batch, first + min(batch + accumulate, in_epoch))
        self._before = [tf.identity(value) for value in self._weights()]
        with gradient_recorder.untouched(self.model, self._strategy):
            by_time = self._by_time(tf.constant(steps[0], tf.int64))
            parts = [self._gradients(tf.constant(step, tf.int64)) for step in steps]
        gradients = [tf.add_n(part) for part in zip(*parts, strict=True)]
        self._latest = self._by_layer("gradient_norm", gradients)
        self._warn_of_layers(self._latest)
        for path, norms in by_time.items():
            norms = norms.numpy()
            self._warn_of_time(path, norms)
            for t in np.unique(np.linspace(1, len(norms), TIME_STEPS).round().astype(int)):
                self._latest[f"input_gradient_norm/{path}/{t}"] = float(norms[t - 1])

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        if self._before is None:
            return
        pairs = zip(self._weights(), self._before, strict=True)
        self._latest |= self._by_layer("update_norm", [after - before for after, before in pairs])
        self._before = None
        if self._writer:
            with self._writer.as_default(self._update):
                for name, value in self._latest.items():
                    tf.summary.scalar(name, value)

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self._rows[-1].update(self._latest)

    def on_train_end(self, logs: dict[str, float] | None = None) -> None:
        if self._writer:
            self._writer.close()

    def _weights(self) -> list[tf.Tensor]:
        """Returns the trainable variables, those of the first replica."""
        return [
            self._strategy.experimental_local_results(variable.value)[0]
            for variable in self.model.trainable_variables
        ]

    def _by_layer(self, name: str, values: list[tf.Tensor]) -> dict[str, float]:
        norms = [float(tf.norm(tf.cast(value, tf.float32))) for value in values]
        return {
            f"{name}/{path}": math.hypot(*(norms[index] for index in indices))
            for path, indices in self._indices.items()
        }

    def _warn_of_layers(self, norms: dict[str, float]) -> None:
        large = {name: value for name, value in norms.items() if not value <= EXPLODING}
        if self.model.optimizer.scales_loss and not all(map(math.isfinite, norms.values())):
            text = "gradients overflow in float16; the update is left out and the loss scaled less"
            self._warn("overflow", text)
        elif large:
            self._warn("exploding", f"the gradient explodes: {_listed(large)}; set `clip_norm`")
        if len(norms) < 2:
            return
        first, *_, last = norms
        if norms[first] < VANISHING * norms[last]:
            self._warn(
                "vanishing",
                f"the gradient vanishes from the last layer to the first: "
                f"{_listed({last: norms[last], first: norms[first]})}; normalize between layers, "
                "or start from other weights",
            )

    def _warn_of_time(self, path: str, norms: np.ndarray) -> None:
        where = f"of {path!r}, ‖∂L_T/∂x_t‖ with T = {len(norms)},"
        if not norms.max() <= EXPLODING:
            text = f"the gradient {where} explodes: {norms.max():.3g}; set `clip_norm`"
            self._warn(f"exploding in time {path}", text)
        if norms[0] < VANISHING * norms[-1]:
            text = (
                f"the gradient {where} vanishes: {norms[-1]:.3g} at t = T, {norms[0]:.3g} at "
                "t = 1; take gated cells (LSTM, GRU) or shorter windows"
            )
            self._warn(f"vanishing in time {path}", text)

    def _warn(self, what: str, text: str) -> None:
        if what not in self._warned:
            self._warned.add(what)
            logging.warning("Phase %s, update %d: %s.", self._phase.name, self._update, text)


def _gradients(
    model: keras.Model, strategy: tf.distribute.Strategy, read: Callable, weighed: str
) -> Callable:
    """Returns a graph function from a step to the gradients of the trainable variables, times the
    share of its batch in the update.
    """

    @tf.function(autograph=False)
    def gradients(step: tf.Tensor) -> list[tf.Tensor]:
        with gradient_recorder.recording(model) as recorder:

            def one(step: tf.Tensor) -> list[tf.Tensor]:
                replica = tf.distribute.get_replica_context().replica_id_in_sync_group
                replica = tf.cast(replica, tf.int64)
                *batch, share = read(step, replica, strategy.num_replicas_in_sync)
                own_step.take(model, *batch, weighed=weighed)
                return [each * tf.cast(share, each.dtype) for each in recorder.take()]

            parts = strategy.run(one, args=(step,))
        return [strategy.reduce("SUM", part, axis=None) for part in parts]

    return gradients


def _by_time(
    model: keras.Model,
    strategy: tf.distribute.Strategy,
    read: Callable,
    loss: keras.losses.Loss,
) -> Callable:
    """Returns a graph function from a step to `through_time.norms` of the first replica's batch."""
    norms = through_time.norms(model, loss)
    if not through_time.layers(model):
        return lambda step: {}

    @tf.function(autograph=False)
    def by_time(step: tf.Tensor) -> dict[str, tf.Tensor]:
        x, y, _, _ = read(step, tf.constant(0, tf.int64), strategy.num_replicas_in_sync)
        return norms(x, y)

    return by_time


def _listed(norms: dict[str, float]) -> str:
    shown = [f"{name.partition('/')[2]} {value:.3g}" for name, value in norms.items()]
    return ", ".join(shown[:8]) + (f" and {len(shown) - 8} more" if len(shown) > 8 else "")
