"""The outputs of a frozen part of a model on disk: one row for each example, read by index.

with contextlib.closing(Features(folder, key, count, specs, limit_gb=10)) as features:
    features.fill(compute)
    tensors = features.read(indices)  # in a dataset's graph; for indices below `filled`
"""

import dataclasses
import math
import os
import pathlib
import weakref
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf
from absl import logging

from tfbp import storage
from tfbp.caching import budget
from tfbp.caching.row_file import Progress, Rows, block_rows
from tfbp.errors import mistake

GB = 10**9
_LARGEST_HALF = float(np.finfo(np.float16).max)


@dataclasses.dataclass(frozen=True)
class _Column:
    """Where one tensor of an example lies in its row.

    Attributes:
        spec: of the tensor that goes in and comes out.
        stored: the dtype on disk.
        start, size: in bytes.
    """

    spec: tf.TensorSpec
    stored: tf.DType
    start: int
    size: int


class Features:
    """Tensors of `count` examples in `folder/key`, for models, runs and processes to share.

    Attributes:
        count: number of examples.
        row_bytes: the size of one example's row.
        fits: number of first examples that the budget and the disk have space for.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        key: str,
        count: int,
        specs: Sequence[tf.TensorSpec],
        *,
        limit_gb: float,
        half: bool = False,
    ):
        """Opens the cache, or makes an empty one, and frees space for it.

        Where not all rows fit, neither in the limit nor on the disk, other caches in the folder
        that nobody uses are removed, the least recently opened first. If they do not fit even so,
        as many as do are cached, and a warning says so.

        Args:
            folder: holds one folder for each key.
            key: fingerprint of everything that the features depend on.
            count: number of examples.
            specs: shape and dtype of each tensor of one example.
            limit_gb: size of all caches in the folder together, in 10⁹ bytes.
            half: whether float32 and float64 are stored as float16. They come back in their own
                dtype, rounded to 11 binary digits and clipped to ±65,504. Such rows are kept apart
                from whole ones of the same key.

        Raises:
            tfbp.UserError: a spec has no fixed size, or the folder cannot be written.
        """
        self._columns = _columns(specs, half)
        self.count, self.row_bytes = count, row_bytes(specs, half=half)
        folder, name = pathlib.Path(folder), f"{key}-half" if half else key
        columns = [[each.spec.shape.as_list(), each.stored.name] for each in self._columns]
        layout = {"name": name, "count": count, "columns": columns}
        with budget.opening(folder):
            storage.sweep(folder)
            fits = (
                budget.reserve(folder, name, count * self.row_bytes, limit_gb * GB)
                // self.row_bytes
            )
            if fits < count:  # Half a block would look damaged to a run that can hold all of it.
                fits -= fits % block_rows(self.row_bytes)
            self._rows = Rows(folder / name, layout, count=fits, size=self.row_bytes)
        self.fits = self._rows.count
        if self.fits < count:
            logging.warning(
                "The cache %s can hold %d of %d examples; the others are computed each time.",
                folder / name,
                self.fits,
                count,
            )

    @property
    def filled(self) -> int:
        """Number of first examples whose features can be read; 0 before `fill`."""
        return self._rows.filled

    def fill(
        self,
        compute: Callable[[np.ndarray], Sequence[np.ndarray]],
        progress: Progress | None = None,
    ) -> None:
        """Computes the features that are missing or damaged; see `Rows.fill`.

        Afterwards `filled` is `fits`, or less where the disk took no more.

        Args:
            compute: from the indices of examples (int64 [n], n at most 64, rising by one) to their
                tensors, [n, …] each, in the order of the specs.
            progress: called with the number of examples done, and of `fits`, after each block.
        """
        clipped = 0

        def row_bytes_of(indices: np.ndarray) -> np.ndarray:
            nonlocal clipped
            rows = np.empty((len(indices), self.row_bytes), np.uint8)
            for column, values in zip(self._columns, compute(indices), strict=True):
                values, beyond = _to_stored(np.asarray(values), column, len(indices))
                rows[:, column.start : column.start + column.size] = values
                clipped += beyond
            return rows

        self._rows.fill(row_bytes_of, progress)
        if clipped:
            logging.warning(
                "%d features are beyond the range of float16, and have become ±65,504.", clipped
            )

    def read(self, indices: tf.Tensor) -> list[tf.Tensor]:
        """Returns the features at `indices`, [n, …] each, as the specs say. A graph function.

        Args:
            indices: integers [n], from 0 to `filled - 1`; others are an error.
        """
        indices = tf.cast(indices, tf.int64)
        # TensorFlow keeps the function for ever, and would keep the files open with it.
        reader = weakref.WeakMethod(self._rows.read)

        def read(indices: np.ndarray) -> np.ndarray:
            rows = reader()
            if rows is None:
                raise RuntimeError("The cache is no longer there.")
            return rows(indices)

        rows = tf.numpy_function(read, [indices], tf.uint8, stateful=False)
        rows = tf.ensure_shape(rows, (indices.shape[0], self.row_bytes))
        cells = tf.split(rows, [column.size for column in self._columns], axis=1)
        return [_from_stored(*each) for each in zip(cells, self._columns, strict=True)]

    def close(self) -> None:
        """Lets go of the cache: it may then be removed to free space, and no longer be read."""
        self._rows.close()


def row_bytes(specs: Sequence[tf.TensorSpec], *, half: bool = False) -> int:
    """Returns the bytes that one example takes on disk.

    Args:
        specs, half: see `Features`.

    Raises:
        tfbp.UserError: a spec has no fixed size.
    """
    return sum(column.size for column in _columns(specs, half))


def _columns(specs: Sequence[tf.TensorSpec], half: bool) -> list[_Column]:
    columns, start = [], 0
    for spec in specs:
        numbers = spec.dtype.is_floating or spec.dtype.is_integer or spec.dtype.is_bool
        if not spec.shape.is_fully_defined() or not numbers:
            raise mistake("specs", "must each be of a fixed shape, and of numbers", spec)
        stored = tf.float16 if half and spec.dtype in (tf.float32, tf.float64) else spec.dtype
        stored = tf.uint8 if stored == tf.bool else stored  # bits cannot be cast to bool
        size = math.prod(spec.shape.as_list()) * stored.size
        columns.append(_Column(spec, stored, start, size))
        start += size
    return columns


def _to_stored(values: np.ndarray, column: _Column, count: int) -> tuple[np.ndarray, int]:
    """Returns the bytes of a column, uint8 [count, size], and how many values were clipped."""
    expected = (count, *column.spec.shape)
    if values.shape != expected or values.dtype != column.spec.dtype.as_numpy_dtype:
        raise ValueError(
            f"`compute` must return {column.spec.dtype.name} {list(expected)}. "
            f"Received: {values.dtype} {list(values.shape)}."
        )
    with np.errstate(over="ignore"):
        stored = np.ascontiguousarray(values, column.stored.as_numpy_dtype)
    beyond = 0
    if stored.dtype == np.float16 != values.dtype:
        over = np.isinf(stored) & np.isfinite(values)
        beyond = int(over.sum())
        stored[over] = np.copysign(_LARGEST_HALF, values[over])
    return stored.reshape(count, -1).view(np.uint8), beyond


def _from_stored(cells: tf.Tensor, column: _Column) -> tf.Tensor:
    """Returns the bytes of a column, uint8 [n, size], as a tensor [n, …]. A graph function."""
    items = [column.stored.size] if column.stored.size > 1 else []
    cells = tf.reshape(cells, [tf.shape(cells)[0], *column.spec.shape, *items])
    return tf.cast(tf.bitcast(cells, column.stored), column.spec.dtype)
