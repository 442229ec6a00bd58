"""Global batches in the order of (seed, epoch), cut into one slice for each replica.

A batch is a pure function of its step, so that a run resumes anywhere in O(1) and any number of
replicas sees the same global batches.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any, Self

import numpy as np
import tensorflow as tf

from tfbp.data import structures
from tfbp.data.examples import Batch, Examples, order

# Bytes that are copied in the time it takes to hand a batch from thread to thread, about 30 µs.
SMALL = 2**18


def steps_per_epoch(size: int, batch_size: int) -> int:
    """Returns the number of global batches that hold `size` examples; the last may be smaller."""
    return math.ceil(size / batch_size)


def updates_per_epoch(size: int, batch_size: int, accumulate: int) -> int:
    """Returns the number of updates, each with the gradients of `accumulate` batches; an epoch's
    last one may have fewer.
    """
    return math.ceil(steps_per_epoch(size, batch_size) / accumulate)


@dataclasses.dataclass(frozen=True)
class Batching:
    """Which examples make which batch of a phase, and how much each counts.

    Whoever needs to know (the loop, the log of gradients, a message that names examples) is given
    the same object, so that they agree.

    Attributes:
        batch_size: examples per global batch.
        seed: of the order of each epoch, and of augmentation.
        accumulate: batches of one update; an epoch's last update has those that are left.
        class_weights: float32 [classes], for labels that are scalars; None: all weigh 1. Where y is
            a structure, one of these for each of its leaves, or None.
    """

    batch_size: int
    seed: int = 0
    accumulate: int = 1
    class_weights: Any = None


def training(
    examples: Examples, strategy: tf.distribute.Strategy, batching: Batching, steps: range
) -> Iterable[Any]:
    """Returns the batches of `steps`, counted from the start of the phase.

    Each replica gets (x, y, weight, share):
    - its slice of the global batch;
    - float32 weights, [slice], or [slice, 1] if y is a sequence of labels: the example's own weight
      times that of the label's class, each 1 where there is none, and 0 for the examples that stand
      in for an empty slice. Where y is a structure, so are they;
    - the factor, a float32 scalar, by which the mean over replicas of their means, summed over the
      batches of an update, becomes the mean of all examples of the update.
    """
    read = reader(examples, batching)
    if _at_once(examples, strategy, batching.batch_size):
        return _InPlace(steps, read)
    return _distribute(strategy, steps, read)


def reader(examples: Examples, batching: Batching) -> Callable:
    """Returns a graph function from (step, replica, replicas) to the replica's part of the step's
    batch: see `training`. Step and replica are int64 scalars.
    """
    size, batch_size, seed = examples.size, batching.batch_size, batching.seed
    accumulate, class_weights = batching.accumulate, batching.class_weights
    epoch_steps = steps_per_epoch(size, batch_size)
    targets = examples.spec[1]
    if class_weights is None:
        class_weights = structures.each(lambda target: None, targets)

    def read(step: tf.Tensor, replica: tf.Tensor, replicas: int) -> tuple[Any, Any, Any, tf.Tensor]:
        epoch, low, high = _slice(step, epoch_steps, size, batch_size, replica, replicas)
        # If the batch is smaller than there are replicas, the whole of it stands in for an empty
        # slice: statistics that all replicas share are then those of the batch.
        _, start, end = _slice(step, epoch_steps, size, batch_size, 0, 1)
        empty = high == low
        positions = tf.range(tf.where(empty, start, low), tf.where(empty, end, high))
        indices = order(positions, size, seed, epoch)
        x, y = examples.read_augmented(indices, seed, epoch)

        def weigh(target: tf.TensorSpec, labels: tf.Tensor, of_classes: Any) -> tf.Tensor:
            # Keras multiplies the weights with losses of their rank: one for each index, or each
            # vector.
            inner = [1] * (target.shape.rank if target.dtype.is_integer else target.shape.rank - 1)
            weight = tf.fill([tf.size(indices), *inner], tf.where(empty, 0.0, 1.0))
            if of_classes is not None:
                weight *= tf.gather(tf.constant(of_classes, tf.float32), labels)
            if examples.weights is not None:
                own = tf.gather(tf.constant(examples.weights), indices)
                weight *= tf.reshape(own, [-1, *inner])
            return weight

        weight = structures.each(weigh, targets, y, class_weights)
        first = step % epoch_steps // accumulate * accumulate * batch_size
        count = tf.minimum(tf.constant(accumulate * batch_size, tf.int64), size - first)
        share = tf.cast((high - low) * replicas, tf.float32) / tf.cast(count, tf.float32)
        return x, y, weight, share

    return read


def indices(size: int, batching: Batching, steps: range) -> np.ndarray:
    """Returns the indices, int64 [n], of the examples that `training` reads in `steps`."""
    parts, batch_size = [], batching.batch_size
    for step in steps:
        epoch, low, high = _slice(
            tf.constant(step, tf.int64), steps_per_epoch(size, batch_size), size, batch_size, 0, 1
        )
        parts.append(order(tf.range(low, high), size, batching.seed, epoch).numpy())
    return np.concatenate(parts)


def evaluation(
    examples: Examples, strategy: tf.distribute.Strategy, *, batch_size: int
) -> Iterable[Any]:
    """Returns all examples once, in their own order: batches of (x, y, indices) for each replica.

    The indices, int64 [n], are those of the slice. An empty slice has none, but one example that
    stands in for it: TensorFlow's convolutions on the CPU fail on empty batches.
    """
    size, steps = examples.size, steps_per_epoch(examples.size, batch_size)

    def read(step: tf.Tensor, replica: tf.Tensor, replicas: int) -> tuple[Any, Any, tf.Tensor]:
        _, low, high = _slice(step, steps, size, batch_size, replica, replicas)
        x, y = examples.read(tf.range(low, tf.maximum(high, low + 1)) % size)
        return x, y, tf.range(low, high)

    return _distribute(strategy, range(steps), read)


def _slice(
    step: tf.Tensor,
    epoch_steps: int,
    size: int,
    batch_size: int,
    replica: tf.Tensor | int,
    replicas: int,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns (epoch, first position, end position)."""
    epoch, batch = step // epoch_steps, step % epoch_steps
    start = batch * batch_size
    count = tf.minimum(tf.constant(batch_size, tf.int64), size - start)
    return epoch, start + count * replica // replicas, start + count * (replica + 1) // replicas


def _at_once(examples: Examples, strategy: tf.distribute.Strategy, batch_size: int) -> bool:
    """Whether a batch is read in less time than another thread would take to hand it over."""
    if not examples.in_memory or examples.is_augmented or strategy.num_replicas_in_sync > 1:
        return False
    row = sum(
        each.shape.num_elements() * each.dtype.size for each in tf.nest.flatten(examples.spec)
    )
    return batch_size * row <= SMALL


class _InPlace:
    """The batches of `steps`, read inside the graph that uses them: `next` is a part of it.

    A graph must not take more batches than there are; each `iter` starts again.
    """

    def __init__(self, steps: range, read: Callable):
        self._steps, self._read = steps, read
        with tf.device("CPU:0"), tf.init_scope():
            self._next = tf.Variable(steps.start, trainable=False, dtype=tf.int64)

    def __iter__(self) -> Self:
        self._next.assign(self._steps.start)
        return self

    def __next__(self) -> Batch:
        if tf.executing_eagerly() and self._next >= self._steps.stop:
            raise StopIteration
        with tf.device("CPU:0"):  # where the rows are
            step = self._next.read_value()
            self._next.assign_add(1)
            return self._read(step, 0, 1)


def _distribute(
    strategy: tf.distribute.Strategy, steps: range, read: Callable
) -> tf.distribute.DistributedDataset:
    def slices(context: tf.distribute.InputContext) -> tf.data.Dataset:
        replicas = context.num_replicas_in_sync
        here = replicas // context.num_input_pipelines
        first = context.input_pipeline_id * here

        @tf.autograph.experimental.do_not_convert
        def part(element: tf.Tensor) -> Any:
            return read(steps.start + element // here, first + element % here, replicas)

        # tf.distribute deals consecutive elements out to the replicas of this worker.
        elements = tf.data.Dataset.range(len(steps) * here)
        if context.num_input_pipelines > 1:
            # All have equally many: otherwise workers would synchronize before each step.
            endless = tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY)
            elements = elements.apply(endless)
        return elements.map(
            part,
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        ).prefetch(tf.data.AUTOTUNE)

    return strategy.distribute_datasets_from_function(slices)
