"""Examples with an index, and their order.

Everything that training promises rests on this: since each example has an index, the order of an
epoch is a pure function of (seed, epoch, position), and a run can go on from any step of it.

    examples = Examples.from_arrays(x, y)
    indices = order(positions, examples.size, seed=0, epoch=3)
    images, labels = examples.read(indices)
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike

from tfbp import fingerprint
from tfbp.data import arrays, indexes, labels, structures, tags
from tfbp.data.precision import content_hashes
from tfbp.errors import mistake

# The preparation of rows that are read as they are held.
_ROWS = "rows"

# x and y, each a tensor or a structure of tensors.
Batch = tuple[Any, Any]
Transform = Callable[[Any, tf.Tensor], Any]


class Examples:
    """A finite set of examples, each with an index from 0 to `size - 1`.

    An example is a pair (x, y). x is an image (float32 [height, width, channels], 0 to 255), a
    vector (float32 [features]; int32 or int64 where float32 would round) or tokens (int32 [steps]).
    y is a label (int64 []), values (float32 [k]) or, for text, the tokens that follow (int32
    [steps], or [] for the last alone). Either may be a structure of such tensors (dicts and tuples,
    nested), in which x may hold text, bool, int32 and int64 too: see `structures`.

    Attributes:
        size: number of examples.
        spec: the `tf.TensorSpec`s of x and y of one example, each a structure of them.
        hashes: [size], dtype "S64": hex SHA-256 of each example's content. Equal hashes, equal x.
        targets: all y, [size, …], or a structure of them.
        weights: float32 [size]: how much each example counts in the loss that is trained with;
            None: all alike.
        characters_per_token: for text, how many characters of it one token stands for; else None.
        columns: for the rows of a table, what the entries of x are called; else None.
        values: for the rows of a table, what the entries of y are called; else None.
        views: of augmented examples, how many views of each there are; 0: one for each epoch.
        preparation: what makes x of what the hashes are of, without augmentation: equal hashes and
            preparations, equal x; None: it has no name.
    """

    def __init__(
        self,
        read: Callable[[tf.Tensor], Batch],
        *,
        spec: tuple[Any, Any],
        hashes: np.ndarray,
        targets: Any,
        name: Callable[[int], str] = "row {}".format,
        characters_per_token: float | None = None,
        columns: tuple[str, ...] | None = None,
        values: tuple[str, ...] | None = None,
        views: int = 0,
        preparation: str | None = None,
        weights: np.ndarray | None = None,
    ):
        """Describes examples that `read` can fetch.

        Args:
            read: graph function from indices (int64 [n]) to (x [n, …], y [n, …]).
            spec, hashes, targets, characters_per_token: see the attributes.
            columns, values, views, preparation, weights: see the attributes.
            name: what an error calls the example of an index.
        """
        self.size = len(hashes)
        self.spec = spec
        self.hashes = hashes
        self.targets = targets
        self.characters_per_token = characters_per_token
        self.columns = columns
        self.values = values
        self.views = views
        self.preparation = preparation
        self.weights = weights
        self._read = read
        self._name = name
        self._transform: Transform | None = None  # see `augmented`

    @classmethod
    def from_arrays(
        cls,
        x: Any,
        y: Any,
        *,
        name: Callable[[int], str] = "row {}".format,
        columns: Sequence[str] | None = None,
        values: Sequence[str] | None = None,
        weights: ArrayLike | None = None,
    ) -> "Examples":
        """Makes the rows of two arrays examples, held in memory (uint8 stays uint8 there).

        Args:
            x: numbers [size, …]; [size] becomes [size, 1]. They are held as `precision.narrow`
                says; their identity, in `hashes`, is that of the numbers as given.
            y: whole numbers [size] are labels; floats [size, k] or [size] are values.
            x and y may be structures of arrays: see `arrays.inputs` and `arrays.targets`.
            name: what an error calls the example of an index.
            columns, values: see the attributes. Default of `columns`: those of a DataFrame.
            weights: numbers [size] of at least 0, not all 0: see the attributes.

        Raises:
            tfbp.UserError: the lengths differ, or any is not as it must be.
        """
        indexes.check_equal(x=x, y=y, weights=weights)
        if columns is not None:
            labels.check_text("columns", columns)
        named = tags.columns(x)
        (x, given), y = arrays.inputs(x, columns), arrays.targets(y)
        if columns is None and not structures.is_nested(x) and x.dtype.kind != "O":
            columns = named
        structures.check_sizes("y", y, ("x", x))
        arrays.check_names("columns", columns, x)
        arrays.check_names("values", values, y)
        spec = structures.each(_spec, (x, y))
        with tf.device("CPU:0"):  # a batch travels to the device, not the whole set
            held = structures.each(tf.constant, (x, y))

        def read(indices: tf.Tensor) -> Batch:
            def row(array: tf.Tensor, spec: tf.TensorSpec) -> tf.Tensor:
                return tf.cast(tf.gather(array, indices), spec.dtype)

            return structures.each(row, held, spec)

        return cls(
            read,
            spec=spec,
            hashes=content_hashes(given),
            targets=y,
            name=name,
            columns=None if columns is None else tuple(columns),
            values=None if values is None else tuple(values),
            preparation=_ROWS,
            weights=None if weights is None else arrays.weights(weights, structures.size(x)),
        )

    @property
    def labels(self) -> np.ndarray | None:
        """int64 [size]: the class of each example; None unless y is a class index."""
        return self.targets if labels.is_label(self.targets) else None

    @property
    def in_memory(self) -> bool:
        """Whether `read` does no more than copy rows that lie in memory."""
        return self.preparation == _ROWS

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hex SHA-256 over shapes, contents, targets and weights, in order."""
        shapes = [
            (leaf.shape.as_list(), leaf.dtype.name, *([(part, *path)] if path else []))
            for part, spec in zip("xy", self.spec, strict=True)
            for path, leaf in structures.leaves(spec).items()
        ]
        held = [self.hashes, *structures.leaves(self.targets).values()]
        parts = [repr(shapes), *map(fingerprint.of_array, held)]
        if self.weights is not None:
            parts.append(fingerprint.of_array(self.weights))
        return fingerprint.of_bytes(*(part.encode() for part in parts))

    def read(self, indices: tf.Tensor) -> Batch:
        """Reads x [n, …] and y [n, …] of the examples at integers [n]. A graph function."""
        return self._read(tf.cast(indices, tf.int64))

    @property
    def is_augmented(self) -> bool:
        """Whether `read_augmented` gives another x than `read`."""
        return self._transform is not None

    def read_augmented(
        self, indices: tf.Tensor, seed: int | tf.Tensor, epoch: int | tf.Tensor
    ) -> Batch:
        """Like `read`, with each x augmented. A graph function.

        What happens to an example depends on (seed, epoch, its index) alone: not on its position in
        the batch, on the number of workers or what was read before. With `views`, epochs that are
        equal modulo their number are alike.

        Args:
            epoch: one for all, or integers [n].
        """
        indices = tf.cast(indices, tf.int64)
        x, y = self.read(indices)
        transform = self._transform
        if transform is None:
            return x, y
        epochs = tf.broadcast_to(tf.cast(epoch, tf.int64), tf.shape(indices))
        if self.views:
            epochs %= self.views

        def augment(one: tuple[Any, tf.Tensor, tf.Tensor]) -> Any:
            example, index, epoch = one
            root = tf.stack([tf.cast(seed, tf.int64), epoch])
            return transform(example, tf.random.experimental.stateless_fold_in(root, index))

        return tf.map_fn(augment, (x, indices, epochs), fn_output_signature=self.spec[0]), y

    def name(self, index: int) -> str:
        """What an error calls an example: "cat/0001.jpg", "row 17"."""
        return self._name(int(index))

    def take(self, indices: np.ndarray) -> "Examples":
        """The examples at `indices` (integers [n]), in that order."""
        indices = np.asarray(indices, np.int64)
        with tf.device("CPU:0"):
            rows = tf.constant(indices)
        return self._with(
            read=lambda chosen: self._read(tf.gather(rows, chosen)),
            hashes=self.hashes[indices],
            targets=structures.take(self.targets, indices),
            weights=None if self.weights is None else self.weights[indices],
            name=lambda index: self._name(int(indices[index])),
        )

    def augmented(self, transform: Transform | None) -> "Examples":
        """These examples with another augmentation, or with none.

        Args:
            transform: graph function from x of one example and a seed (int64 [2]) to x, of the same
                shape. It must be stateless: equal seeds, equal answers.

        Raises:
            tfbp.UserError: it does not take the examples.
        """
        traced = transform and tf.function(transform)  # AutoGraph is for what users write alone
        if traced is not None:
            try:
                seed = tf.TensorSpec([2], tf.int64)
                traced.get_concrete_function(self.spec[0], seed)
            except (TypeError, ValueError) as error:
                shape = structures.described(self.spec[0])
                rule = f"must take the examples, which are {shape}"
                raise mistake("transform", rule, transform) from error
        examples = self._with()
        examples._transform = traced
        return examples

    def in_views(self, count: int) -> "Examples":
        """These examples with epochs that cycle through `count` augmented views."""
        return self._with(views=count)

    def mapped(
        self,
        function: Callable[[Any], Any],
        spec: Any,
        *,
        preparation: str | None = None,
    ) -> "Examples":
        """These examples with x [n, …] passed through a graph function.

        Args:
            function: from a batch of x to a batch of x. The hashes stay those of the old x, and
                `columns` is None.
            spec: of the new x of one example.
            preparation: names what the function does, with all settings. A cache tells by it
                whether x is the same; without it, it reads each x to tell.
        """

        def read(indices: tf.Tensor) -> Batch:
            x, y = self._read(indices)
            return function(x), y

        known = self.preparation and preparation
        return self._with(
            read=read,
            spec=(spec, self.spec[1]),
            columns=None,
            preparation=f"{self.preparation}, {preparation}" if known else None,
        )

    def with_target(self, name: str) -> "Examples":
        """These examples with one array of y, which is a dict, for their y."""

        def read(indices: tf.Tensor) -> Batch:
            x, y = self._read(indices)
            return x, y[name]

        spec = self.spec[0], self.spec[1][name]
        return self._with(read=read, spec=spec, targets=self.targets[name])

    def _with(self, **changes: object) -> "Examples":
        current: dict[str, Any] = {
            "read": self._read,
            "spec": self.spec,
            "hashes": self.hashes,
            "targets": self.targets,
            "name": self._name,
            "characters_per_token": self.characters_per_token,
            "columns": self.columns,
            "values": self.values,
            "views": self.views,
            "preparation": self.preparation,
            "weights": self.weights,
        }
        examples = Examples(**{**current, **changes})
        examples._transform = self._transform
        return examples


def _spec(array: np.ndarray) -> tf.TensorSpec:
    """The type of a row as it is read: images in bytes are float32."""
    dtype = tf.float32 if array.dtype == np.uint8 else tf.as_dtype(array.dtype)
    return tf.TensorSpec(array.shape[1:], dtype)


def order(
    positions: tf.Tensor, size: int, seed: int | tf.Tensor, epoch: int | tf.Tensor
) -> tf.Tensor:
    """The indices of the examples at some positions of an epoch. A graph function.

    Over positions 0 to `size - 1` it is a permutation, another one for each (seed, epoch); nothing
    is stored or drawn, so an epoch can be entered anywhere and shared among workers.

    Args:
        positions: integers [n] from 0 to `size - 1`, at least one.
        size: number of examples.
        seed, epoch: what the order depends on.

    Returns:
        int64 [n].
    """
    return tf.random.experimental.index_shuffle(
        tf.cast(positions, tf.int64),
        seed=tf.stack([tf.cast(seed, tf.int64), tf.cast(epoch, tf.int64)]),
        max_index=tf.cast(size - 1, tf.int64),
    )
