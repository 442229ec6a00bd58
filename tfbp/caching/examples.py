"""Examples whose x are features of a cache: a phase learns from these in place of the examples.

Where examples have a fixed number of augmented views, a cache has a row for each view of each: view
after view.
"""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfbp import fingerprint
from tfbp.caching.features import Features
from tfbp.caching.prefix import Prefix
from tfbp.data import structures
from tfbp.data.examples import Batch, Examples

# Examples that are read at once for a fingerprint.
_BLOCK = 64


class CachedExamples(Examples):
    """Examples with features for x. Those that are not in the cache are computed each time.

    Attributes:
        filled: number of first rows that are in it.
    """

    def __init__(self, examples: Examples, prefix: Prefix, cache: Features, seed: int):
        super().__init__(
            self._unaugmented,
            spec=(prefix.specs, examples.spec[1]),
            hashes=examples.hashes,
            targets=examples.targets,
            name=examples.name,
            views=examples.views,
            weights=examples.weights,
        )
        self._examples, self._cache, self._seed = examples, cache, seed
        self.filled = cache.filled
        self._compute = _on_cpu(prefix.features)

    def read_augmented(
        self, indices: tf.Tensor, seed: int | tf.Tensor, epoch: int | tf.Tensor
    ) -> Batch:
        indices = rows = tf.cast(indices, tf.int64)
        if self._examples.is_augmented:
            rows += tf.cast(epoch, tf.int64) % self.views * self.size
        return self._at(rows), self._y(indices)

    def _unaugmented(self, indices: tf.Tensor) -> Batch:
        if self._examples.is_augmented:
            return self._compute(self._examples.read(indices)[0]), self._y(indices)
        return self._at(indices), self._y(indices)

    def _y(self, indices: tf.Tensor) -> Any:
        return self._examples.read(indices)[1]  # x is not used, so no graph computes it.

    def _at(self, rows: tf.Tensor) -> tuple[tf.Tensor, ...]:
        if self.filled == self._cache.count:
            return tuple(self._cache.read(rows))
        missing = tf.cast(rows >= self.filled, tf.int32)
        positions = tf.dynamic_partition(tf.range(tf.size(rows)), missing, 2)
        there, others = tf.dynamic_partition(rows, missing, 2)
        known = self._cache.read(there)

        def compute() -> tuple[tf.Tensor, ...]:
            return self._compute(read_x(self._examples, others, self._seed))

        def nothing() -> tuple[tf.Tensor, ...]:
            return tuple(each[:0] for each in known)

        # TensorFlow's convolutions on the CPU take no empty batch.
        computed = tf.cond(tf.size(others) > 0, compute, nothing)
        pairs = zip(known, computed, strict=True)
        return tuple(tf.dynamic_stitch(positions, list(pair)) for pair in pairs)


def _on_cpu(part: keras.Model) -> Callable[[Any], tuple[tf.Tensor, ...]]:
    """Returns a part of a model, whose variables stay as they are, for the graph of a dataset,
    which runs on the CPU wherever the model may be.
    """

    def compute(x: Any) -> tuple[tf.Tensor, ...]:
        with tf.device("CPU:0"), tf.init_scope():
            values = [(each, tf.identity(each.value)) for each in part.variables]
        with keras.StatelessScope(state_mapping=values):
            return tuple(part(x, training=False))

    return compute


def rows(examples: Examples) -> int:
    """Returns how many rows a cache of examples has."""
    return examples.size * max(1, examples.views)


def read_x(examples: Examples, rows: tf.Tensor, seed: int) -> Any:
    """Returns the x of rows: of examples or, view after view, of their views. A graph function."""
    if not examples.is_augmented:
        return examples.read(rows)[0]
    return examples.read_augmented(rows % examples.size, seed, rows // examples.size)[0]


def fingerprint_of_x(examples: Examples, seed: int) -> str:
    """Returns a fingerprint of all x.

    Where they are augmented, or their preparation has no name, each of them is read.
    """
    hashes = fingerprint.of_array(examples.hashes)
    if examples.preparation and not examples.is_augmented:
        return fingerprint.of_json([hashes, examples.preparation])
    blocks = tf.data.Dataset.range(rows(examples)).batch(_BLOCK)
    blocks = blocks.map(
        tf.autograph.experimental.do_not_convert(lambda chosen: read_x(examples, chosen, seed)),
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
    )
    read = [
        fingerprint.of_array(leaf)
        for block in blocks.prefetch(tf.data.AUTOTUNE)
        for leaf in structures.leaves(block).values()
    ]
    return fingerprint.of_json([hashes, read])
