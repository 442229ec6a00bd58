"""Examples of a held-out split that are nearly the same as training examples.

Shots of one burst, frames of one film, readings of one machine a second apart: cut apart by
content, they make a model look better than it is. Which ones belong together only their owner
knows; that there are such ones is seen by looking.
"""

from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from tfbp.data import structures
from tfbp.data.examples import Examples
from tfbp.data.splits import Splits
from tfbp.finding import Finding, listed

# Examples that are compared: of each held-out split, and of the training split.
_HELD_OUT, _TRAIN = 500, 5_000
# Numbers that are read for it at most: a second or two of decoding.
_NUMBERS = 2**27
_BLOCK = 64
# Edge of the small grey images that are compared, in pixels.
_EDGE = 16
# Squared distances, where those of unrelated examples are about 2. For images it is a correlation
# of 0.99: no test image of scikit-learn's digits, of printed letters, or of 1,000 of CIFAR-10 has
# it with a training image (of 10,000 of CIFAR-10).
_NEAR_IMAGES, _NEAR_ROWS = 2 * (1 - 0.99), 2 * 0.01**2
# Rows of fewer columns come near each other by chance.
_COLUMNS = 8
# Part of the examples looked at that passes without a word.
_FEW = 0.01


def findings(splits: Splits) -> Iterator[Finding]:
    """Yields `near-copies`, for images and for rows of eight columns or more."""
    held_out = {name: part for name, part in splits.parts().items() if name != "train"}
    for path, spec in structures.leaves(splits.train.spec[0]).items():
        wide = spec.shape.rank == 1 and spec.shape[0] >= _COLUMNS
        if not (spec.shape.rank == 3 or wide) or not spec.dtype.is_floating:  # tokens, text
            continue
        yield from _near(splits.train, held_out, path, spec.shape)


def _near(
    examples: Examples, held_out: dict[str, Examples], path: structures.Path, shape: tf.TensorShape
) -> Iterator[Finding]:
    """Yields the finding for one tensor of x."""
    is_image = shape.rank == 3
    room = max(1, _NUMBERS // shape.num_elements())
    train_rows = _spread(examples, min(_TRAIN, room))
    train = _read(examples, train_rows, path)
    center, scale = train.mean(axis=0), np.maximum(train.std(axis=0), 1e-6)
    known = set(examples.hashes.tolist())
    for name, part in held_out.items():
        rows = _spread(part, min(_HELD_OUT, room))
        rows = rows[[part.hashes[row] not in known for row in rows]]  # copies are another finding
        if not len(rows):
            continue
        one, other = _read(part, rows, path), train
        if not is_image:
            one, other = ((each - center) / scale / len(scale) ** 0.5 for each in (one, other))
        distances = (one**2).sum(1)[:, None] + (other**2).sum(1) - 2 * one @ other.T
        distances[(one**2).sum(1) == 0] = np.inf  # images of one colour, and rows of means
        nearest = distances.argmin(axis=1)
        near = np.flatnonzero(distances.min(axis=1) < (_NEAR_IMAGES if is_image else _NEAR_ROWS))
        if len(near) <= _FEW * len(rows):
            continue
        pairs = [
            f"{part.name(rows[row])} (like {examples.name(train_rows[nearest[row]])})"
            for row in near
        ]
        where = f" in `{structures.named('x', path)}`" if path else ""
        yield Finding(
            "near-copies",
            f"{len(near)} of {len(rows)} examples of `{name}` are nearly the same as examples of "
            f"`train`{where}: {listed(pairs)}. If they belong together, as shots of one burst or "
            "readings of one machine do, say so with `groups`, or cut in time with `order`: "
            "results are too good else.",
            warning=True,
        )


def _spread(examples: Examples, count: int) -> np.ndarray:
    count = min(count, examples.size)
    return np.unique(np.linspace(0, examples.size - 1, count).astype(np.int64))


def _read(examples: Examples, rows: np.ndarray, path: structures.Path) -> np.ndarray:
    """Returns what is compared of some examples, float32 [rows, numbers]."""

    @tf.autograph.experimental.do_not_convert
    def look(chosen: tf.Tensor) -> tf.Tensor:
        x = structures.leaves(examples.read(chosen)[0])[path]
        return _small(x) if x.shape.rank == 4 else x

    blocks = tf.data.Dataset.from_tensor_slices(rows).batch(_BLOCK)
    blocks = blocks.map(look, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return np.concatenate(list(blocks.as_numpy_iterator()))


def _small(images: tf.Tensor) -> tf.Tensor:
    """Small grey images of mean 0 and length 1; what is nearly of one colour is 0."""
    grey = tf.reduce_mean(images, axis=-1, keepdims=True)
    height, width = (min(_EDGE, edge) for edge in images.shape[1:3])
    grey = tf.image.resize(grey, (height, width), method="area")
    flat = tf.reshape(grey, [-1, height * width])
    flat -= tf.reduce_mean(flat, axis=1, keepdims=True)
    length = tf.norm(flat, axis=1, keepdims=True)
    # A deviation of one of 255 levels.
    return tf.where(length > (height * width) ** 0.5, flat / length, 0.0)
