"""The inputs of signatures: images of any size, image files, columns, arrays, and their names."""

import dataclasses
import itertools
import keyword
import re
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from tfbp.data import images, structures
from tfbp.data.examples import Examples
from tfbp.modeling import model_inputs
from tfbp.tasks import sample_outputs
from tfbp.tasks.task import Signature

# Images that are looked at to learn their scale, or all if there are fewer.
_IMAGES = 32


@dataclasses.dataclass(frozen=True)
class Input:
    """One way to hand examples to a model.

    Attributes:
        specs: the name of each input → its tensor, the batch first.
        read: graph function from these, as keyword arguments, to the model's x, and which rows are
            good, bool [batch]; None: all of them.
        write: from x of examples, arrays [n, …], to a request with these.
    """

    specs: dict[str, tf.TensorSpec]
    read: Callable[..., tuple[Any, tf.Tensor | None]]
    write: Callable[[Any], dict[str, np.ndarray]]


def of(
    examples: Examples, *, array: str, largest_image: int, model: keras.Model | None = None
) -> dict[str, Input]:
    """Returns signature → input, by what the examples are; `serving_default` comes first.

    Images: `image` (float32 [batch, height, width, 3], 0 to 255, of any size; grey ones have one
    channel too where the model's are grey) and, as the signature `image_bytes`, the input
    `image_bytes` (string [batch]: JPEG, PNG, GIF and BMP files of any sizes), but where
    the examples are 0 to 1 or partly negative: files are 0 to 255. Rows of a table: its columns by
    their `identifiers` (float32 [batch] each). A structure: its tensors, as in the examples, by
    their keys (`text_ids` of `x["text"]["ids"]`); those of a tuple by the names that `model` has
    for its inputs, or as `x_0`, `x_1`, … where it has none. All else: `array`, as in the examples.

    Args:
        array: name of the input that takes arrays.
        largest_image: height and width that an image file may have, in pixels.
    """
    spec = examples.spec[0]
    if structures.is_nested(spec):
        return {"serving_default": _named(spec, model)}
    if spec.shape.rank == 3 and spec.shape[-1] in (1, 3):
        height, width, channels = spec.shape
        taken = {"serving_default": _pixels(height, width, channels)}
        if _is_of_files(examples):
            taken["image_bytes"] = _files(height, width, channels, largest_image)
        return taken
    if examples.columns:
        return {"serving_default": _columns(identifiers(examples.columns), spec.dtype)}
    specs = {array: tf.TensorSpec([None, *spec.shape], spec.dtype)}
    return {
        "serving_default": Input(specs, lambda **x: (x[array], None), lambda rows: {array: rows})
    }


def _is_of_files(examples: Examples) -> bool:
    """Tells whether images have the scale of image files, 0 to 255; logs a warning if not."""
    x, _ = sample_outputs.few(examples, _IMAGES)
    low, high = float(x.min()), float(x.max())
    if low >= 0 and not 0 < high <= 1:
        return True
    logging.warning(
        "The export has no signature `image_bytes`: the images are %.4g to %.4g, and files are 0 "
        "to 255. To have it, give images from 0 to 255 and scale them in the model, by "
        "`keras.layers.Rescaling`.",
        low,
        high,
    )
    return False


def _named(spec: Any, model: keras.Model | None) -> Input:
    paths = structures.leaves(spec)
    names = [structures.joined(path) for path in paths]
    if isinstance(spec, tuple):
        taken = model_inputs.matched(model, spec) if model is not None else {}
        names = [
            model_inputs.name_of(taken.get(path)) or f"x_{names[i]}" for i, path in enumerate(paths)
        ]
    known = dict(zip(identifiers(names), structures.batched(list(paths.values())), strict=True))

    def read(**received: tf.Tensor) -> tuple[Any, None]:
        return keras.tree.pack_sequence_as(spec, [received[name] for name in known]), None

    def write(rows: Any) -> dict[str, np.ndarray]:
        return dict(zip(known, structures.leaves(rows).values(), strict=True))

    return Input(known, read, write)


def signatures(
    inputs: dict[str, Input],
    answer: Callable[[Any], dict[str, tf.Tensor]],
    examples: Examples,
    *,
    bad: float,
) -> dict[str, Signature]:
    """Returns a signature for each input.

    Args:
        answer: graph function from the model's x to the outputs, [batch, …].
        examples: what requests are made of.
        bad: every number in the answer to a bad row, or 0 if they are whole; its strings are "".
    """

    def function(item: Input) -> Callable[..., dict[str, tf.Tensor]]:
        @tf.autograph.experimental.do_not_convert
        def call(**received: tf.Tensor) -> dict[str, tf.Tensor]:
            x, good = item.read(**received)
            outputs = answer(x)
            if good is None:
                return outputs
            return {name: _blank(value, good, bad) for name, value in outputs.items()}

        return call

    def request(item: Input) -> Callable[[int], dict[str, np.ndarray]]:
        return lambda count: item.write(sample_outputs.exactly(examples, count))

    return {
        name: Signature(function(item), item.specs, request(item)) for name, item in inputs.items()
    }


def identifiers(names: Sequence[str]) -> list[str]:
    """Names the columns of a table in a signature, each differently.

    TensorFlow takes Python's identifiers alone: "sepal length (cm)" becomes `sepal_length_cm`.
    """
    result = []
    for name in names:
        word = re.sub(r"[^0-9A-Za-z]+", "_", name).strip("_")
        if not word or word[0].isdigit() or keyword.iskeyword(word):
            word = f"column_{word}".strip("_")
        equals = (f"{word}_{number}" for number in itertools.count(2))
        result.append(next(name for name in itertools.chain([word], equals) if name not in result))
    return result


def _pixels(height: int, width: int, channels: int) -> Input:
    def read(image: tf.Tensor) -> tuple[tf.Tensor, None]:
        if image.shape[-1] is None:
            count = tf.shape(image)[-1]
            rule = "`image` must have 1 or 3 channels. Received:"
            fits = (count == 1) | (count == 3)
            with tf.control_dependencies([tf.Assert(fits, [rule, count])]):
                image = tf.identity(image)
        return images.resize(image, height, width, channels), None

    def write(x: np.ndarray) -> dict[str, np.ndarray]:
        # The more there are the larger they are, so that other sizes are tried too.
        more = len(x) - 1
        return {"image": images.resize(x, height + more, width + 2 * more, channels).numpy()}

    shape = [None, None, None, 3 if channels == 3 else None]
    return Input({"image": tf.TensorSpec(shape, tf.float32)}, read, write)


def _files(height: int, width: int, channels: int, largest: int) -> Input:
    def read(image_bytes: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return images.decode_each(image_bytes, height, width, channels, largest)

    def write(x: np.ndarray) -> dict[str, np.ndarray]:
        files = []
        for number, pixels in enumerate(x):
            pixels = images.resize(pixels, height + number, width + 2 * number, channels)
            encode = tf.io.encode_jpeg if number % 2 else tf.io.encode_png
            files.append(encode(tf.saturate_cast(tf.round(pixels), tf.uint8)).numpy())
        return {"image_bytes": np.array(files, object)}

    return Input({"image_bytes": tf.TensorSpec([None], tf.string)}, read, write)


def _columns(names: Sequence[str], dtype: tf.DType) -> Input:
    return Input(
        {name: tf.TensorSpec([None], dtype) for name in names},
        lambda **columns: (tf.stack([columns[name] for name in names], axis=1), None),
        lambda rows: dict(zip(names, rows.T, strict=True)),
    )


def _blank(value: tf.Tensor, good: tf.Tensor, bad: float) -> tf.Tensor:
    rows = tf.reshape(good, [-1] + [1] * (value.shape.rank - 1))
    floating = value.dtype.is_floating
    return tf.where(
        rows, value, tf.constant(bad, value.dtype) if floating else tf.zeros([], value.dtype)
    )
