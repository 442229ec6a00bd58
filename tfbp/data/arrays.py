"""Arrays as users hand them in: checked, and brought to the types that examples have."""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tfbp.errors import UserError, mistake


def inputs(x: object) -> np.ndarray:
    """Makes `x` uint8 or float32 [size, …]; numbers [size] become vectors [size, 1].

    Raises:
        tfbp.UserError: not numbers, no examples, NaN or infinity.
    """
    x = _numbers("x", x)
    if x.dtype != np.uint8:
        x = x.astype(np.float32, copy=False)
    _check_finite("x", x)
    return x[:, np.newaxis] if x.ndim == 1 else x


def targets(y: object) -> np.ndarray:
    """Makes `y` labels, int64 [size] (from whole numbers), or values, float32 [size, k].

    Raises:
        tfbp.UserError: not numbers, no examples, another shape, NaN or infinity.
    """
    y = _numbers("y", y)
    if np.issubdtype(y.dtype, np.floating):
        if y.ndim > 2:
            raise mistake("y", "must have the shape [size] or [size, values]", y.shape)
        y = y.astype(np.float32, copy=False)
        _check_finite("y", y)
        return y.reshape(len(y), -1)
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1:
        raise mistake("y", "must be labels of the shape [size], not one-hot rows", y.shape)
    return y.astype(np.int64)


def check_names(argument: str, names: Sequence[str] | None, rows: np.ndarray) -> None:
    """Checks that names, if there are any, are one for each entry of the rows, [size, entries].

    Raises:
        tfbp.UserError: they are more or fewer, or rows are no vectors.
    """
    if names is not None and (len(names),) != rows.shape[1:]:
        rule = f"must be one name for each entry of a row, whose shape is {list(rows.shape[1:])}"
        raise mistake(argument, rule, list(names))


def by_name(y: object, classes: Sequence[str] | None) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """Separates labels and class names. Labels that are names become positions in `classes`.

    Without `classes` the names are those that occur, sorted.

    Raises:
        tfbp.UserError: a label is not among `classes`, or there are `classes` and the labels are
            floats.
    """
    y = np.asarray(y)
    if y.dtype.kind in "SUO":
        names = [name.decode() if isinstance(name, bytes) else str(name) for name in y.tolist()]
        classes = tuple(sorted(set(names)) if classes is None else classes)
        position = {name: label for label, name in enumerate(classes)}
        for row, name in enumerate(names):
            if name not in position:
                raise mistake("y", f"must hold names of `classes` (row {row})", name, classes)
        return np.array([position[name] for name in names], np.int64), classes
    if classes is not None and y.dtype.kind == "f":
        raise mistake("y", "must hold whole labels when `classes` are given", y.dtype.name)
    return y, None if classes is None else tuple(map(str, classes))


def check_classes(labels: np.ndarray, classes: Sequence[str]) -> None:
    """Checks that labels and class names fit each other.

    Raises:
        tfbp.UserError: one class only, a name twice, fewer examples than classes, a label outside
            `classes`, a class without examples.
    """
    twice = [name for name in classes if list(classes).count(name) > 1]
    if twice:
        raise mistake("classes", "must differ from each other", twice[0])
    if len(classes) < 2:
        raise mistake("classes", "must be two or more", list(classes))
    outside = np.flatnonzero((labels < 0) | (labels >= len(classes)))
    if len(outside):
        row = outside[0]
        rule = f"must hold labels from 0 to {len(classes) - 1}, one for each class (row {row})"
        raise mistake("y", rule, int(labels[row]))
    if len(labels) < len(classes):
        raise UserError(
            f"There must be at least one example of each class. "
            f"Received: {len(labels)} examples of {len(classes)} classes."
        )
    empty = np.flatnonzero(np.bincount(labels, minlength=len(classes)) == 0)
    if len(empty):
        more = f" (and {len(empty) - 1} more)" if len(empty) > 1 else ""
        rule = f"must each have an example; {classes[empty[0]]!r} has none{more}"
        raise mistake("classes", rule, list(classes))


def read_dataset(dataset: tf.data.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Reads all x and all y of a finite dataset of pairs, single or in batches.

    Raises:
        tfbp.UserError: the dataset is infinite, empty or not of pairs of tensors; its examples
            differ in shape; it cannot be told whether it yields examples or batches.
    """
    if not isinstance(dataset, tf.data.Dataset):
        raise mistake("dataset", "must be a tf.data.Dataset", dataset)
    spec = dataset.element_spec
    is_pair = isinstance(spec, tuple) and len(spec) == 2
    if not is_pair or not all(isinstance(item, tf.TensorSpec) for item in spec):
        raise mistake("dataset", "must yield pairs of tensors (x, y)", spec)
    if dataset.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise mistake("dataset", "must be finite", "an infinite one (`repeat`?)")
    if not _is_batched(*spec):
        dataset = dataset.batch(256)
    try:
        batches = list(dataset.as_numpy_iterator())
        if not batches:
            raise mistake("dataset", "must hold at least one example", "an empty one")
        x, y = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    except (tf.errors.InvalidArgumentError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"`dataset` must yield examples of one shape. {error}") from error
    return x, y


def _is_batched(x: tf.TensorSpec, y: tf.TensorSpec) -> bool:
    if x.shape.rank is None or y.shape.rank is None:
        raise mistake("dataset", "must yield tensors of known rank", (x, y))
    if x.shape.rank == 0 or y.shape.rank == 0:
        return False
    if x.shape[0] is None and y.shape[0] is None:
        return True
    if x.shape[0] == y.shape[0] and not y.dtype.is_integer:
        # Vectors of k features with k values look just like batches of k numbers.
        raise mistake("dataset", "must say what it yields: `unbatch` it", (x, y))
    return x.shape[0] == y.shape[0]


def _numbers(argument: str, array: object) -> np.ndarray:
    try:
        array = np.asarray(array)
    except ValueError:
        rule = "must be an array whose rows have one shape"
        raise mistake(argument, rule, "a ragged list") from None
    if array.dtype.kind not in "buif":
        raise mistake(argument, "must be numbers", array.dtype.name)
    if array.ndim == 0:
        raise mistake(argument, "must have one row for each example", array.item())
    if not array.size:
        raise mistake(argument, "must hold at least one example", array.shape)
    return array


def _check_finite(argument: str, array: np.ndarray) -> None:
    # A sum is finite only when every entry is (or overflowed, which the second look settles).
    if array.dtype == np.uint8 or np.isfinite(array.sum(dtype=np.float64)):
        return
    bad = np.flatnonzero(~np.isfinite(array.reshape(len(array), -1)).all(axis=1))
    if len(bad):
        more = f", {len(bad) - 1} more" if len(bad) > 1 else ""
        row = array[bad[0]]
        value = float(row[~np.isfinite(row)].flat[0]) if row.ndim else float(row)
        raise mistake(argument, f"must be finite (row {bad[0]}{more})", value)
