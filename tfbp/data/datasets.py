"""A dataset of pairs, or of triples with a weight, read once into memory."""

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging

from tfbp.data import structures
from tfbp.data.precision import content_hashes
from tfbp.errors import UserError, mistake

# How much is read of a dataset that does not say its size: examples, and bytes.
MOST = 100_000
_MOST_BYTES = 2**32
# From this many examples on, and at each doubling, a dataset is looked at for repeats.
_FIRST_LOOK = 1024
# Seconds between two lines that count.
_SECONDS = 10.0

# (x, y) or (x, y, weight), of structures of arrays.
Arrays = tuple[Any, ...]


def read(dataset: tf.data.Dataset, at_most: int | None = None) -> tuple[Any, Any, Any]:
    """Reads all x, all y and all weights, None where there are none, of a finite dataset, single or
    batched. x and y may be structures.

    A dataset that does not say its size, like one from a Python generator, is counted while it is
    read, and may hold 100,000 examples or 4 GiB.

    Args:
        at_most: how many examples it may hold, instead of that.

    Raises:
        tfbp.UserError: the dataset is infinite, larger than it may be, empty or not of pairs, or
            triples, of tensors; its size is unknown and it repeats itself; its examples differ in
            shape; it could yield examples as well as batches.
    """
    if not isinstance(dataset, tf.data.Dataset):
        raise mistake("dataset", "must be a tf.data.Dataset", dataset)
    spec = dataset.element_spec
    known = isinstance(spec, tuple) and len(spec) in (2, 3)
    if not known or not all(isinstance(item, tf.TensorSpec) for item in tf.nest.flatten(spec)):
        rule = "must yield tensors (x, y) or (x, y, weight), x and y also dicts or tuples of them"
        raise mistake("dataset", rule, spec)
    cardinality = int(dataset.cardinality())
    if cardinality == tf.data.INFINITE_CARDINALITY:
        raise mistake("dataset", "must be finite", "an infinite one (`repeat`?)")
    if not _is_batched(*spec[:2]):
        dataset = dataset.batch(256)
    batches = dataset.as_numpy_iterator()
    if cardinality == tf.data.UNKNOWN_CARDINALITY or at_most is not None:
        batches = _bounded(batches, at_most)
    try:
        every = list(batches)
        if not every:
            raise mistake("dataset", "must hold at least one example", "an empty one")
        x, y, *weights = tf.nest.map_structure(lambda *parts: np.concatenate(parts), *every)
    except (tf.errors.InvalidArgumentError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"`dataset` must yield examples of one shape. {error}") from error
    return x, y, weights[0] if weights else None


def _bounded(batches: Iterator[Arrays], at_most: int | None) -> Iterator[Arrays]:
    count = size = 0
    seen: set[bytes] = set()
    look, known = _FIRST_LOOK, 0
    clock = time.monotonic()
    for arrays in batches:
        yield arrays
        x = arrays[0]
        count += structures.size(x)
        size += sum(array.nbytes for array in tf.nest.flatten(arrays))
        if count > (MOST if at_most is None else at_most) or (
            at_most is None and size > _MOST_BYTES
        ):
            raise UserError(
                f"`dataset` does not end: {count:,} examples, {size / 2**20:,.0f} MiB, were read. "
                "Cut one that is endless with `dataset.take(…)`. If it ends later, say how many "
                "examples it may hold: `at_most=…`."
            )
        if at_most is None:
            seen.update(content_hashes(x).tolist())
            if count >= look:
                if len(seen) == known:
                    raise UserError(
                        f"`dataset` repeats itself: of {count:,} examples only {known:,} differ, "
                        "and the second half holds no new one. Leave `repeat` out, or cut it with "
                        "`dataset.take(…)`. If it is meant so, say how many examples it may hold: "
                        "`at_most=…`."
                    )
                look, known = 2 * count, len(seen)
        if time.monotonic() - clock > _SECONDS:
            logging.info("%s examples read of a dataset that does not say its size.", f"{count:,}")
            clock = time.monotonic()


def _is_batched(x: Any, y: Any) -> bool:
    shapes = [spec.shape for spec in tf.nest.flatten((x, y))]
    if any(shape.rank is None for shape in shapes):
        raise mistake("dataset", "must yield tensors of known rank", (x, y))
    if any(shape.rank == 0 for shape in shapes):
        return False
    sizes = {shape[0] for shape in shapes}
    labels = all(spec.dtype.is_integer for spec in tf.nest.flatten(y))
    if len(sizes) == 1 and None not in sizes and not labels:
        # Vectors of k features with k values look just like batches of k numbers.
        raise mistake("dataset", "must say what it yields: `unbatch` it", (x, y))
    return len(sizes) == 1
