"""Training: the loop is ours, the step is Keras's.

`keras.Model.fit` cannot go on in the middle of an epoch and does not run on several workers; the
steps, metrics and callbacks here are Keras's own.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from tfbp.data import structures
from tfbp.data.examples import Examples
from tfbp.errors import UserError
from tfbp.training import batches, own_step
from tfbp.workers import workers

# One compiled call runs so many steps that it takes about this long: long enough to hide the cost
# of a call (about a millisecond), short enough for progress and checkpoints.
SECONDS_PER_CALL = 0.1
# Of a phase whose updates may be left out, the one with which it stops all the same.
LAST_SKIPPED = 10
NAMED = 10  # examples that a message names


class Diverged(UserError):
    """The loss is not a finite number, or too many updates have not been."""


@dataclasses.dataclass
class Hooks:
    """What a loop calls at the points where something besides the training happens.

    Attributes:
        callbacks: are called for epochs and for calls of several steps, as by Keras's fit.
        watch: every `watch`-th update, the phase's first among them, has a call of its own, so that
            callbacks stand right before and after it; 0: none. An update is one step, or as many
            as the optimizer accumulates.
    """

    callbacks: keras.callbacks.CallbackList
    watch: int = 0

    def resume(self) -> None:
        """Is called once before the first step: after the callbacks' beginning, and that of the
        epoch when the loop starts inside one, so that it can undo what they did a second time.
        """

    def validate(self) -> Mapping[str, float]:
        """Returns the validation metrics; is called once after each epoch."""
        return {}

    def after_call(self, step: int) -> None:
        """Is called at each point where the run can go on from, with the number of steps done."""


def train(
    model: keras.Model,
    examples: Examples,
    strategy: tf.distribute.Strategy,
    hooks: Hooks,
    batching: batches.Batching,
    *,
    epochs: int,
    start: int = 0,
    on_nan: str = "stop",
) -> int:
    """Trains a model that is compiled with `tfbp.training.update.Update`, and built.

    Args:
        start: steps of the phase that are done already, with their state in the model.
        on_nan: "stop" at the first step whose loss is not finite; or "skip": an update whose loss
            or gradients are not finite changes nothing, in the weights, the statistics, the
            optimizer, the metrics or the random seeds, but counts in `model.optimizer.skipped`.
            Where an epoch has had no other, its metrics are NaN.

    Returns:
        The steps of the phase that are done: all of them unless a callback stopped it.

    Raises:
        Diverged: the loss is NaN or infinite; or the tenth update of the phase has been skipped.
    """
    accumulate, skipping = batching.accumulate, on_nan == "skip"
    in_epoch = batches.steps_per_epoch(examples.size, batching.batch_size)
    updates = batches.updates_per_epoch(examples.size, batching.batch_size, accumulate)
    total, done, limit = epochs * in_epoch, start, 1
    if skipping:
        with strategy.scope():
            model.optimizer.skip_not_finite()
    weighed = own_step.weighed_by(examples, batching.class_weights, strategy)
    steps, processes = _compile(model, strategy, skipping, weighed), workers.of(strategy)
    iterator = iter(batches.training(examples, strategy, batching, range(start, total)))
    model.stop_training = False
    hooks.callbacks.on_train_begin()
    if start % in_epoch and start < total:
        hooks.callbacks.on_epoch_begin(start // in_epoch)
    hooks.resume()
    while done < total and not model.stop_training:
        epoch, step = divmod(done, in_epoch)
        if step == 0:
            hooks.callbacks.on_epoch_begin(epoch)
            model.reset_metrics()
        update = epoch * updates + step // accumulate
        together = min(limit, _until_watched(update, hooks.watch)) if hooks.watch else limit
        count = min(together * accumulate, in_epoch - step)
        hooks.callbacks.on_train_batch_begin(step)
        began = time.perf_counter()
        taken, finite, metrics = steps(iterator, tf.constant(count))
        logs = _numbers(metrics)
        limit = min(_adapt(limit, processes.longest(time.perf_counter() - began)), updates)
        last = step + int(taken) - 1
        done += int(taken)
        if not finite:
            first = last // accumulate * accumulate if skipping else last
            affected = range(epoch * in_epoch + first, done)
            named = _named(examples, batching, affected)
            where = f"at epoch {epoch + 1}, step {last + 1}, of the examples {named}"
            logs = _after_not_finite(model, logs, where, skipping)
        hooks.callbacks.on_train_batch_end(last, logs)
        if done % in_epoch == 0:
            logs |= {f"val_{name}": value for name, value in hooks.validate().items()}
            hooks.callbacks.on_epoch_end(epoch, logs)
        hooks.after_call(done)
    hooks.callbacks.on_train_end()
    return done


def _after_not_finite(
    model: keras.Model, logs: dict[str, float], where: str, skipping: bool
) -> dict[str, float]:
    """Returns the logs of a call whose last update was left out.

    Raises:
        Diverged: it was not to be left out, or it was the tenth of the phase.
    """
    if not skipping:
        raise Diverged(
            f"The loss is {logs['loss']} {where}. If these are in order, the update before "
            "has spoiled the weights. Lower the learning rate, set `clip_norm`, or leave "
            "such updates out with `on_nan`."
        )
    _warn(model.optimizer.skipped, where)
    if not any(np.any(variable) for variable in _loss(model).variables):
        return dict.fromkeys(logs, math.nan)  # not zero: nothing has been measured yet
    return logs


def acts_on_batches(callback: keras.callbacks.Callback) -> bool:
    """Tells whether a callback does anything before or after a batch."""
    names = "on_batch_begin", "on_batch_end", "on_train_batch_begin", "on_train_batch_end"
    plain = keras.callbacks.Callback
    return any(
        getattr(getattr(callback, name), "__func__", None) is not getattr(plain, name)
        for name in names
    )


def _named(examples: Examples, batching: batches.Batching, steps: range) -> str:
    """Names the first examples of some steps, by their indices and names."""
    chosen = batches.indices(examples.size, batching, steps)
    shown = ", ".join(f"{index} ({examples.name(index)})" for index in chosen[:NAMED])
    return shown if len(chosen) <= NAMED else f"{shown}, …"


def _warn(skipped: int, where: str) -> None:
    if skipped >= LAST_SKIPPED:
        raise Diverged(
            f"{skipped} updates of the phase were not finite and were left out, the last {where}. "
            "Lower the learning rate, or set `clip_norm`."
        )
    logging.warning(
        "Update left out, number %d of at most %d: not finite %s.", skipped, LAST_SKIPPED - 1, where
    )


def _until_watched(update: int, watch: int) -> int:
    """Returns how many updates from this one on may share a call."""
    return watch - update % watch if update % watch else 1


def _numbers(metrics: Mapping[str, tf.Tensor]) -> dict[str, float]:
    """Returns a model's running metrics as numbers, "loss" first."""
    numbers = {name: float(value) for name, value in metrics.items()}
    return {"loss": numbers.pop("loss"), **numbers}


def _adapt(limit: int, seconds: float) -> int:
    if seconds < SECONDS_PER_CALL / 2:
        return limit * 2
    return max(1, limit // 2) if seconds > SECONDS_PER_CALL * 2 else limit


def build(model: keras.Model, examples: Examples, strategy: tf.distribute.Strategy) -> None:
    """Makes the variables of a compiled model's optimizer and metrics; a traced loop may not."""
    with strategy.scope():
        if not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)

    def metrics(x: Any, y: Any) -> None:
        outputs = model(x, training=False)
        model.compute_metrics(x, y, outputs)
        if structures.is_nested(y):  # each output's loss has a metric of its own
            model.compute_loss(x, y, outputs)

    run = strategy.run
    if strategy.num_replicas_in_sync > 1:  # of which TensorFlow warns outside of a graph
        run = tf.function(run, autograph=False)
    run(metrics, args=examples.read(tf.constant([0], tf.int64)))
    model.reset_metrics()


def _loss(model: keras.Model) -> keras.metrics.Metric:
    """Returns the running mean of the loss."""
    return next(metric for metric in model.metrics if metric.name == "loss")


# (iterator of batches, most steps to take) → steps taken, whether all was finite, running metrics
_Steps = Callable[[Any, tf.Tensor], tuple[tf.Tensor, tf.Tensor, Mapping[str, tf.Tensor]]]


def _compile(
    model: keras.Model, strategy: tf.distribute.Strategy, skipping: bool, weighed: str
) -> _Steps:
    """Compiles what takes several steps in one call.

    It ends with a step whose loss is not finite or, where it skips, with an update left out. A step
    is traced as Keras's fit does, without AutoGraph, which would read the source of all it calls.
    """
    accumulate = model.optimizer.accumulate
    counts = model.metrics_variables if strategy.num_replicas_in_sync > 1 else []
    # The sum of an epoch's losses stays NaN or infinite once one has been: one number tells it all.
    total = _loss(model).variables[0]

    def one(x: Any, y: Any, weight: Any, share: tf.Tensor) -> tf.Tensor:
        before = [tf.identity(variable) for variable in counts]
        with model.optimizer.weighing(share):
            own_step.take(model, x, y, weight, weighed=weighed)
        # The stand-in of an empty slice is nobody's example: no metric may count it.
        for variable, value in zip(counts, before, strict=True):
            variable.assign(tf.where(share > 0, variable, value))
        return tf.convert_to_tensor(total)

    if model.jit_compile:
        one = tf.function(one, jit_compile=True, reduce_retracing=True, autograph=False)

    def step(iterator: Any, done: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        totals = strategy.run(one, args=next(iterator))
        return done + 1, tf.math.is_finite(strategy.reduce("SUM", totals, axis=None))

    @tf.function(reduce_retracing=True, autograph=False)
    def steps(iterator: Any, count: tf.Tensor) -> Any:
        done, finite = tf.while_loop(
            lambda done, finite: (done < count) & finite,
            lambda done, finite: step(iterator, done),
            (tf.constant(0), tf.constant(True)),
        )
        return done, finite, model.get_metrics_result()

    # What a step changes by itself; the weights wait for the update.
    changing = [
        part
        for variable in (*model.non_trainable_variables, *model.metrics_variables)
        for part in strategy.experimental_local_results(variable.value)
        if skipping
    ]

    def update(iterator: Any, done: tf.Tensor, count: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        before = [tf.identity(part) for part in changing]
        end = tf.minimum(done + accumulate, count)
        done, finite = tf.while_loop(
            lambda done, finite: (done < end) & (finite | skipping),
            lambda done, finite: step(iterator, done),
            (done, tf.constant(True)),
        )
        finite = model.optimizer.update(strategy, finite)

        def restore() -> tf.Tensor:
            for part, value in zip(changing, before, strict=True):
                part.assign(value)
            return finite

        return done, tf.cond(finite, lambda: finite, restore)

    @tf.function(reduce_retracing=True, autograph=False)
    def updates(iterator: Any, count: tf.Tensor) -> Any:
        done, finite = tf.while_loop(
            lambda done, finite: (done < count) & finite,
            lambda done, finite: update(iterator, done, count),
            (tf.constant(0), tf.constant(True)),
        )
        return done, finite, model.get_metrics_result()

    return updates if model.optimizer.deferred else steps
