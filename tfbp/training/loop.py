"""Train and evaluate: the loop is ours, the step is Keras's.

`keras.Model.fit` cannot go on in the middle of an epoch and does not run on several workers; the
steps, metrics and callbacks here are Keras's own.
"""

import math
import time
from collections.abc import Callable, Mapping

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from tfbp.data.examples import Examples
from tfbp.errors import UserError
from tfbp.training import batches
from tfbp.workers import workers

# One compiled call runs so many steps that it takes about this long: long enough to hide the cost
# of a call (about a millisecond), short enough for progress and checkpoints.
SECONDS_PER_CALL = 0.1
# Of a phase whose updates may be left out, the one with which it stops all the same.
LAST_SKIPPED = 10
NAMED = 10  # examples that a message names
_PLACES = "places of the examples"  # beside what a task measures


class Diverged(UserError):
    """The loss is not a finite number, or too many updates have not been."""


def train(
    model: keras.Model,
    examples: Examples,
    strategy: tf.distribute.Strategy,
    *,
    epochs: int,
    batch_size: int,
    seed: int,
    start: int = 0,
    callbacks: keras.callbacks.CallbackList,
    validate: Callable[[], dict[str, float]] | None = None,
    after_call: Callable[[int], None] = lambda step: None,
    resume: Callable[[], None] = lambda: None,
    watch: int = 0,
    class_weights: np.ndarray | None = None,
    on_nan: str = "stop",
) -> int:
    """Trains a model that is compiled with `tfbp.training.update.Update`, and built.

    Args:
        start: steps of the phase that are done already, with their state in the model.
        callbacks: told of epochs and of calls of several steps, as Keras's fit does.
        validate: returns the validation metrics, once after each epoch.
        after_call: told the number of steps done, at each point where the run can go on from.
        resume: called once before the first step: after the callbacks' beginning, and that of the
            epoch when `start` is inside one, so that it can undo what they did a second time.
        watch: each `watch`-th update, the phase's first among them, has a call of its own, so that
            callbacks stand right before and after it; 0: none. An update is one step, or as many
            as the optimizer accumulates.
        class_weights: float32 [classes], by which the loss of an example counts; None: all alike.
        on_nan: "stop" at the first step whose loss is not finite; or "skip": an update whose loss
            or gradients are not finite changes nothing, in the weights, the statistics, the
            optimizer, the metrics or the random seeds, but counts in `model.optimizer.skipped`.
            Where an epoch has had no other, its metrics are NaN.

    Returns:
        The steps of the phase that are done: all of them unless a callback stopped it.

    Raises:
        Diverged: the loss is NaN or infinite; or the tenth update of the phase has been skipped.
    """
    accumulate = model.optimizer.accumulate
    in_epoch = batches.steps_per_epoch(examples.size, batch_size)
    updates = batches.updates_per_epoch(examples.size, batch_size, accumulate)
    total, done, limit = epochs * in_epoch, start, 1
    skipping = on_nan == "skip"
    if skipping:
        with strategy.scope():
            model.optimizer.skip_not_finite()
    steps, its = _compile(model, strategy, skipping), workers.of(strategy)
    iterator = iter(
        batches.training(
            examples,
            strategy,
            batch_size=batch_size,
            steps=range(start, total),
            seed=seed,
            accumulate=accumulate,
            class_weights=class_weights,
        )
    )
    model.stop_training = False
    callbacks.on_train_begin()
    if start % in_epoch and start < total:
        callbacks.on_epoch_begin(start // in_epoch)
    resume()
    while done < total and not model.stop_training:
        epoch, step = divmod(done, in_epoch)
        if step == 0:
            callbacks.on_epoch_begin(epoch)
            model.reset_metrics()
        update = epoch * updates + step // accumulate
        together = min(limit, _until_watched(update, watch)) if watch else limit
        count = min(together * accumulate, in_epoch - step)
        callbacks.on_train_batch_begin(step)
        began = time.perf_counter()
        count, finite, measured = steps(iterator, tf.constant(count))
        logs = _numbers(measured)
        limit = min(_adapt(limit, its.longest(time.perf_counter() - began)), updates)
        count = int(count)
        last = step + count - 1
        done += count
        if not finite:
            first = last // accumulate * accumulate if skipping else last
            chosen = range(epoch * in_epoch + first, done)
            named = _named(examples, chosen, batch_size=batch_size, seed=seed)
            where = f"at epoch {epoch + 1}, step {last + 1}, of the examples {named}"
            if not skipping:
                raise Diverged(
                    f"The loss is {logs['loss']} {where}. If these are in order, the update before "
                    "has spoiled the weights. Lower the learning rate, set `clip_norm`, or leave "
                    "such updates out with `on_nan`."
                )
            _warn(model.optimizer.skipped, where)
            if not any(np.any(variable) for variable in _loss(model).variables):
                logs = dict.fromkeys(logs, math.nan)  # not zero: nothing has been measured yet
        callbacks.on_train_batch_end(last, logs)
        if done % in_epoch == 0:
            if validate is not None:
                logs |= {f"val_{name}": value for name, value in validate().items()}
            callbacks.on_epoch_end(epoch, logs)
        after_call(done)
    callbacks.on_train_end()
    return done


def _named(examples: Examples, steps: range, *, batch_size: int, seed: int) -> str:
    """Returns the first examples of some steps, by their indices and names."""
    chosen = batches.indices(examples.size, batch_size=batch_size, steps=steps, seed=seed)
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


def _numbers(measured: Mapping[str, tf.Tensor]) -> dict[str, float]:
    """Returns a model's running metrics as numbers, "loss" first."""
    found = {name: float(value) for name, value in measured.items()}
    return {"loss": found.pop("loss"), **found}


def _adapt(limit: int, seconds: float) -> int:
    if seconds < SECONDS_PER_CALL / 2:
        return limit * 2
    return max(1, limit // 2) if seconds > SECONDS_PER_CALL * 2 else limit


def build(model: keras.Model, examples: Examples, strategy: tf.distribute.Strategy) -> None:
    """Makes the variables of a compiled model's optimizer and metrics; a traced loop may not."""
    with strategy.scope():
        if not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)

    def metrics(x, y):
        model.compute_metrics(x, y, model(x, training=False))

    run = strategy.run
    if strategy.num_replicas_in_sync > 1:  # of which TensorFlow warns outside of a graph
        run = tf.function(run, autograph=False)
    run(metrics, args=examples.read(tf.constant([0], tf.int64)))
    model.reset_metrics()


def _loss(model: keras.Model) -> keras.metrics.Metric:
    """Returns the running mean of the loss."""
    return next(metric for metric in model.metrics if metric.name == "loss")


def _compile(model, strategy, skipping):
    """Returns what runs steps, from (iterator, count) to (steps done, whether all was finite, the
    model's running metrics).

    It ends with a step whose loss is not finite or, where it skips, with an update left out. A step
    is traced as Keras's fit does, without AutoGraph, which would read the source of all it calls.
    """
    accumulate = model.optimizer.accumulate
    counts = model.metrics_variables if strategy.num_replicas_in_sync > 1 else []
    # The sum of an epoch's losses stays NaN or infinite once one has been: one number tells it all.
    total = _loss(model).variables[0]

    def one(x, y, weight, share):
        before = [tf.identity(variable) for variable in counts]
        with model.optimizer.weighing(share):
            model.train_step((x, y, weight))
        # The stand-in of an empty slice is nobody's example: no metric may count it.
        for variable, value in zip(counts, before, strict=True):
            variable.assign(tf.where(share > 0, variable, value))
        return tf.convert_to_tensor(total)

    if model.jit_compile:
        one = tf.function(one, jit_compile=True, reduce_retracing=True)

    @tf.autograph.experimental.do_not_convert
    def run(iterator):
        totals = strategy.run(one, args=next(iterator))
        return tf.math.is_finite(strategy.reduce("SUM", totals, axis=None))

    @tf.function(reduce_retracing=True)
    def steps(iterator, count):
        done, finite = tf.constant(0), tf.constant(True)
        while (done < count) & finite:
            finite = run(iterator)
            done += 1
        return done, finite, model.get_metrics_result()

    # What a step changes by itself; the weights wait for the update.
    changing = [
        part
        for variable in (*model.non_trainable_variables, *model.metrics_variables)
        for part in strategy.experimental_local_results(variable.value)
        if skipping
    ]

    @tf.function(reduce_retracing=True)
    def updates(iterator, count):
        done, finite = tf.constant(0), tf.constant(True)
        while (done < count) & finite:
            before = [tf.identity(part) for part in changing]
            end = tf.minimum(done + accumulate, count)
            while (done < end) & (finite | skipping):
                finite = run(iterator)
                done += 1
            finite = model.optimizer.update(strategy, finite)
            if not finite:
                for part, value in zip(changing, before, strict=True):
                    part.assign(value)
        return done, finite, model.get_metrics_result()

    return updates if model.optimizer.deferred else steps


class Measure:
    """Measures a model on examples, in one pass, each example once, on any strategy.

    Args:
        model: maps x to outputs; inference mode.
        task: its `per_example(x, y, outputs)` returns tensors whose first dimension is the batch.
    """

    def __init__(self, model: keras.Model, task, strategy: tf.distribute.Strategy):
        self._strategy, self._workers = strategy, workers.of(strategy)
        self._batches = {}  # kept, since tracing them takes longer than reading small examples

        @tf.function(reduce_retracing=True, autograph=False)
        def step(iterator):  # whose batches have no fixed size: a smaller one is not traced again
            return strategy.run(one, args=next(iterator))

        def one(x, y, places):
            measured = task.per_example(x, y, model(x, training=False))
            count = tf.size(places)
            return {name: value[:count] for name, value in measured.items()} | {_PLACES: places}

        self._step = step

    def __call__(self, examples: Examples, batch_size: int) -> dict[str, np.ndarray]:
        """Returns what the task measures, arrays of [examples.size, …] in the examples' order."""
        key = examples, batch_size
        if key not in self._batches:
            self._batches[key] = batches.evaluation(examples, self._strategy, batch_size=batch_size)
        parts: dict[str, list] = {}
        iterator = iter(self._batches[key])
        for _ in range(batches.steps_per_epoch(examples.size, batch_size)):
            for name, value in self._step(iterator).items():
                local = self._strategy.experimental_local_results(value)
                parts.setdefault(name, []).extend(part.numpy() for part in local)
        found = {name: np.concatenate(arrays) for name, arrays in parts.items()}
        places = found.pop(_PLACES)
        if self._workers.count == 1:
            return found
        order = np.argsort(self._workers.concatenate(places))
        return {name: self._workers.concatenate(part)[order] for name, part in found.items()}
