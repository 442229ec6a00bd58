"""Evaluates a model on examples, whatever devices and workers there are."""

from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

from tfbp.data.examples import Examples
from tfbp.training import batches
from tfbp.workers import workers

if TYPE_CHECKING:
    from tfbp.tasks.task import Task

_POSITIONS = "positions of the examples"  # beside what a task measures


class Evaluator:
    """Evaluates a model on examples, in one pass, each example once, on any strategy.

    Args:
        model: maps x to outputs; inference mode.
        task: its `per_example(x, y, outputs)` returns tensors whose first dimension is the batch.
    """

    def __init__(self, model: keras.Model, task: "Task", strategy: tf.distribute.Strategy):
        self._strategy, self._workers = strategy, workers.of(strategy)
        # Kept, since tracing them takes longer than reading small examples.
        self._batches: dict[tuple[Examples, int], Any] = {}

        @tf.function(reduce_retracing=True, autograph=False)
        def step(iterator: Any) -> Any:  # batches have no fixed size: a smaller one is not retraced
            return strategy.run(one, args=next(iterator))

        def one(x: Any, y: Any, positions: tf.Tensor) -> dict[str, tf.Tensor]:
            values = task.per_example(x, y, model(x, training=False))
            count = tf.size(positions)
            return {name: value[:count] for name, value in values.items()} | {_POSITIONS: positions}

        self._step = step

    def __call__(self, examples: Examples, batch_size: int) -> dict[str, np.ndarray]:
        """Returns what the task measures, arrays of [examples.size, …] in the examples' order."""
        key = examples, batch_size
        if key not in self._batches:
            self._batches[key] = batches.evaluation(examples, self._strategy, batch_size=batch_size)
        parts: dict[str, list[np.ndarray]] = {}
        iterator = iter(self._batches[key])
        for _ in range(batches.steps_per_epoch(examples.size, batch_size)):
            for name, value in self._step(iterator).items():
                local = self._strategy.experimental_local_results(value)
                parts.setdefault(name, []).extend(part.numpy() for part in local)
        values = {name: np.concatenate(arrays) for name, arrays in parts.items()}
        positions = values.pop(_POSITIONS)
        if self._workers.count == 1:
            return values
        order = np.argsort(self._workers.concatenate(positions))
        return {name: self._workers.concatenate(part)[order] for name, part in values.items()}
