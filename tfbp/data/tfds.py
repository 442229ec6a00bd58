"""Data sets that TensorFlow Datasets has prepared on this machine. Nothing is downloaded."""

import difflib
import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from tfbp.data import images
from tfbp.data.class_folders import PARTS
from tfbp.data.examples import Examples
from tfbp.data.splits import Splits
from tfbp.errors import UserError, mistake

if TYPE_CHECKING:
    import tensorflow_datasets as tfds


def load(
    name: str,
    *,
    size: int | None = None,
    channels: int = 3,
    classes: Sequence[str] | None = None,
    data_dir: str | None = None,
    validation: float = 0.1,
    test: float = 0.1,
    seed: int = 0,
) -> Splits:
    """Loads the splits `train`, `validation` and `test` of a data set of labelled images.

    What is missing of the last two is cut from the first. Images stay encoded until they are read:
    on disk when the data set is stored as ArrayRecord, which can be read at any index, else in
    memory.

    Args:
        name: as TFDS has it: "mnist", "imagenette/160px-v2:1.0.0".
        size: edge of the square images, in pixels; None where the data set's have one size.
        channels: 1 (grey) or 3 (RGB).
        classes: the classes to use, in the order of their labels. Default: all.
        data_dir: where it was prepared. Default: TFDS's own.
        validation, test: fractions cut where there is no such split, in [0, 1).
        seed: which examples are held out.

    Raises:
        tfbp.UserError: an unknown or unprepared data set, one that is not of labelled images, an
            unknown class, or a number out of range.
        ImportError: tensorflow-datasets is not installed.
    """
    images.check_format(size, channels)
    builder = _builder(name, data_dir)
    image_key, label_key = _keys(builder)
    size = size or _common_size(builder.info.features[image_key])
    known = tuple(builder.info.features[label_key].names)
    chosen = tuple(classes or known)
    for label in chosen:
        if label not in known:
            raise mistake("classes", "must be names of this data's classes", label, known)
    new_label = np.full(len(known), -1)
    new_label[[known.index(label) for label in chosen]] = np.arange(len(chosen))

    def examples(part: str) -> Examples:
        fetch, hashes, labels = _records(builder, part, image_key, label_key)
        labels = new_label[labels]
        every = images.encoded(
            fetch,
            labels=labels,
            hashes=hashes,
            size=size,
            channels=channels,
            name=lambda index: f"{part}[{index}]",
        )
        return every.take(np.flatnonzero(labels >= 0))

    parts = {part: examples(part) for part in PARTS if part in builder.info.splits}
    return Splits.cut(
        parts["train"],
        classes=chosen,
        validation=parts.get("validation", validation),
        test=parts.get("test", test),
        seed=seed,
    )


def _builder(name: str, data_dir: str | None) -> "tfds.core.DatasetBuilder":
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError:
        close = difflib.get_close_matches(name, tfds.list_builders(), cutoff=0.5)
        raise mistake("data", "must name a data set that TFDS knows", name, close) from None
    if "train" not in builder.info.splits:
        raise UserError(
            f"The data set {name!r} has no `train` split in {builder.data_path}. "
            f"If it is not prepared yet, do so where there is a network: tfds build {name}"
        )
    return builder


def _keys(builder: "tfds.core.DatasetBuilder") -> tuple[str, str]:
    import tensorflow_datasets as tfds

    features, keys = builder.info.features, builder.info.supervised_keys
    kinds = (tfds.features.Image, tfds.features.ClassLabel)
    if not keys or not all(
        isinstance(features[key], kind) for key, kind in zip(keys, kinds, strict=False)
    ):
        raise mistake("data", "must be a data set of labelled images", builder.name)
    return keys[0], keys[1]


def _common_size(feature: "tfds.features.Image") -> int:
    height, width, _ = feature.shape
    if height is None or height != width:
        raise mistake("size", "must be given: this data's images are not of one square size", None)
    return height


def _records(
    builder: "tfds.core.DatasetBuilder", part: str, image_key: str, label_key: str
) -> tuple[Callable[[tf.Tensor], tf.Tensor], np.ndarray, np.ndarray]:
    """A graph function from indices to the bytes of images; all hashes; all labels."""
    import tensorflow_datasets as tfds

    decoders = {image_key: tfds.decode.SkipDecoding()}
    if builder.info.file_format == tfds.core.FileFormat.ARRAY_RECORD:
        source = builder.as_data_source(part, decoders=decoders)

        def fetch(indices: tf.Tensor) -> tf.Tensor:
            def look_up(chosen: np.ndarray) -> np.ndarray:
                records = source.__getitems__(chosen.tolist())
                return np.array([record[image_key] for record in records], object)

            contents = tf.numpy_function(look_up, [indices], tf.string, stateful=False)
            return tf.ensure_shape(contents, indices.shape)

        records: Iterable[dict[str, Any]] = (source[index] for index in range(len(source)))
    else:
        dataset = builder.as_dataset(split=part, decoders=decoders, shuffle_files=False)
        held = list(dataset.as_numpy_iterator())
        with tf.device("CPU:0"):
            contents = tf.constant([record[image_key] for record in held])
        records = held

        def fetch(indices: tf.Tensor) -> tf.Tensor:
            return tf.gather(contents, indices)

    hashed = [
        (hashlib.sha256(record[image_key]).hexdigest(), record[label_key]) for record in records
    ]
    hashes, labels = zip(*hashed, strict=True)
    return fetch, np.array(hashes, "S64"), np.array(labels, np.int64)
