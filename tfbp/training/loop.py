"""Train and evaluate: the loop is ours, the step is Keras's.

`keras.Model.fit` cannot go on in the middle of an epoch and does not run on several workers; the
steps, metrics and callbacks here are Keras's own.
"""

import math
import time
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from tfbp.data.examples import Examples
from tfbp.errors import UserError
from tfbp.training import batches

# One compiled call runs so many steps that it takes about this long: long enough to hide the cost
# of a call (about a millisecond), short enough for progress and checkpoints.
SECONDS_PER_CALL = 0.1


class Diverged(UserError):
    """The loss is not a finite number."""


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
    watch: int = 0,
    class_weights: np.ndarray | None = None,
) -> int:
    """Trains a model that is compiled with `tfbp.training.optimizer.Update`, and built.

    Args:
        start: steps of the phase that are done already, with their state in the model.
        callbacks: told of epochs and of calls of several steps, as Keras's fit does.
        validate: returns the validation metrics, once after each epoch.
        after_call: told the number of steps done, at each point where the run can go on from.
        watch: each `watch`-th update, the phase's first among them, has a call of its own, so that
            callbacks stand right before and after it; 0: none. An update is one step, or as many
            as the optimizer accumulates.
        class_weights: float32 [classes], by which the loss of an example counts; None: all alike.

    Returns:
        The steps of the phase that are done: all of them unless a callback stopped it.

    Raises:
        Diverged: the loss is NaN or infinite.
    """
    accumulate = model.optimizer.accumulate
    in_epoch = batches.steps_per_epoch(examples.size, batch_size)
    updates = batches.updates_per_epoch(examples.size, batch_size, accumulate)
    total, done, limit = epochs * in_epoch, start, 1
    steps = _compile(model, strategy)
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
    while done < total and not model.stop_training:
        epoch, step = divmod(done, in_epoch)
        if step == 0 or done == start:
            callbacks.on_epoch_begin(epoch)
        if step == 0:
            model.reset_metrics()
        update = epoch * updates + step // accumulate
        together = min(limit, _until_watched(update, watch)) if watch else limit
        count = min(together * accumulate, in_epoch - step)
        callbacks.on_train_batch_begin(step)
        began = time.perf_counter()
        steps(iterator, tf.constant(count))
        logs = results(model)
        limit = min(_adapt(limit, time.perf_counter() - began), updates)
        done += count
        if not math.isfinite(logs["loss"]):
            raise Diverged(
                f"The loss is {logs['loss']} at epoch {epoch + 1}, step {step + count}. "
                "Lower the learning rate, or set `clip_norm`."
            )
        callbacks.on_train_batch_end(step + count - 1, logs)
        if done % in_epoch == 0:
            if validate is not None:
                logs |= {f"val_{name}": value for name, value in validate().items()}
            callbacks.on_epoch_end(epoch, logs)
        after_call(done)
    callbacks.on_train_end()
    return done


def _until_watched(update: int, watch: int) -> int:
    """Returns how many updates from this one on may share a call."""
    return watch - update % watch if update % watch else 1


def results(model: keras.Model) -> dict[str, float]:
    """Returns the model's running metrics, "loss" first."""
    found = {name: float(value) for name, value in model.get_metrics_result().items()}
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

    strategy.run(metrics, args=examples.read(tf.constant([0], tf.int64)))
    model.reset_metrics()


def _compile(model, strategy):
    accumulate = model.optimizer.accumulate
    counts = model.metrics_variables if strategy.num_replicas_in_sync > 1 else []

    def one(x, y, weight, share):
        before = [tf.identity(variable) for variable in counts]
        with model.optimizer.weighing(share):
            model.train_step((x, y, weight))
        # The stand-in of an empty slice is nobody's example: no metric may count it.
        for variable, value in zip(counts, before, strict=True):
            variable.assign(tf.where(share > 0, variable, value))

    if model.jit_compile:
        one = tf.function(one, jit_compile=True, reduce_retracing=True)

    @tf.function(reduce_retracing=True)
    def steps(iterator, count):
        for _ in tf.range(count):
            strategy.run(one, args=next(iterator))

    @tf.function(reduce_retracing=True)
    def updates(iterator, count):
        for done in tf.range(0, count, accumulate):
            for _ in tf.range(tf.minimum(accumulate, count - done)):
                strategy.run(one, args=next(iterator))
            model.optimizer.update(strategy)

    return updates if model.optimizer.deferred else steps


class Measure:
    """Measures a model on examples, in one pass, each example once, on any strategy.

    Args:
        model: maps x to outputs; inference mode.
        task: its `measure(x, y, outputs)` returns tensors whose first dimension is the batch.
    """

    def __init__(self, model: keras.Model, task, strategy: tf.distribute.Strategy):
        self._strategy = strategy
        self._batches = {}  # kept, since tracing them takes longer than reading small examples

        @tf.function(reduce_retracing=True)
        def step(x, y, count):
            return strategy.run(one, args=(x, y, count))

        def one(x, y, count):
            measured = task.measure(x, y, model(x, training=False))
            return {name: value[:count] for name, value in measured.items()}

        self._step = step

    def __call__(self, examples: Examples, batch_size: int) -> dict[str, np.ndarray]:
        """Returns what the task measures, arrays of [examples.size, …] in the examples' order."""
        key = examples, batch_size
        if key not in self._batches:
            self._batches[key] = batches.evaluation(examples, self._strategy, batch_size=batch_size)
        parts: dict[str, list] = {}
        for batch in self._batches[key]:
            for name, value in self._step(*batch).items():
                local = self._strategy.experimental_local_results(value)
                parts.setdefault(name, []).extend(part.numpy() for part in local)
        return {name: np.concatenate(arrays) for name, arrays in parts.items()}
