"""Images as examples: folders of files, decoding and resizing."""

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from tfbp.data import headers
from tfbp.data.examples import Batch, Examples, Splits
from tfbp.errors import UserError, mistake

PARTS = ("train", "validation", "test")

# Height and width, in pixels, that an image of a stranger may have.
LARGEST = 4096


def image_folder(
    path: str | os.PathLike,
    *,
    size: int,
    channels: int = 3,
    validation: float = 0.1,
    test: float = 0.1,
    seed: int = 0,
    classes: Sequence[str] | None = None,
    per_class: int | None = None,
) -> Splits:
    """Returns the splits of a folder of images: JPEG, PNG, GIF (its first frame) and BMP files.

    The folder holds one folder for each class, or `train/`, and perhaps `validation/` and `test/`,
    with the same class folders in each; what is missing of these is cut from `train/`. Hidden files
    are passed over. Every file is hashed and decoded once here; training decodes what it reads.

    Args:
        path: the folder.
        size: edge of the square images, in pixels, that the examples are resized to (bilinear).
        channels: 1 (grey) or 3 (RGB).
        validation, test: fractions cut from the training folder, in [0, 1).
        seed: which examples are held out, and which labels are kept.
        classes: the class folders to use, in the order of their labels. Default: all, sorted.
        per_class: when given, how many training examples of each class are kept.

    Raises:
        tfbp.UserError: no such folder or class, an empty class, one class only, other classes in
            `validation/` or `test/`, files that cannot be decoded, or a number out of range.
    """
    check_format(size, channels)
    root = pathlib.Path(path).expanduser()
    if not root.is_dir():
        raise mistake("path", "must be a folder that exists", str(path))
    folders = _parts(root)
    names = tuple(classes) if classes else _subfolders(folders["train"])
    if not names:
        raise mistake("path", "must hold a folder for each class", str(path))
    found = [
        (part, label, file)
        for part, folder in folders.items()
        for label, file in _labelled_files(folder, names, whole=not classes)
    ]
    parts, labels, files = zip(*found, strict=True)
    examples = _file_examples(root, files, labels, size, channels)
    rows = {part: np.flatnonzero(np.array(parts) == part) for part in folders}
    given = {part: examples.take(rows[part]) for part in folders}
    fractions = {"validation": validation, "test": test}
    splits = Splits.cut(given.pop("train"), classes=names, seed=seed, **(fractions | given))
    if per_class is not None:
        splits = splits.keep_per_class(per_class, seed=seed)
    return dataclasses.replace(splits, description=f"folder:{path}")


def encoded(
    fetch: Callable[[tf.Tensor], tf.Tensor],
    *,
    labels: np.ndarray,
    hashes: np.ndarray,
    size: int,
    channels: int,
    name: Callable[[int], str] = "row {}".format,
) -> Examples:
    """Returns labelled images that are decoded when they are read.

    Args:
        fetch: graph function from indices (int64 [n]) to the bytes of the files (string [n]).
        labels: int64 [size].
        hashes: of the bytes, see `Examples`.
        size, channels: see `decode`.
        name: what an error calls the image of an index.
    """
    with tf.device("CPU:0"):
        all_labels = tf.constant(labels)
    x_spec = tf.TensorSpec((size, size, channels), tf.float32)

    def read(indices: tf.Tensor) -> Batch:
        x = tf.map_fn(
            lambda content: decode(content, size, channels),
            fetch(indices),
            fn_output_signature=x_spec,
        )
        return x, tf.gather(all_labels, indices)

    spec = (x_spec, tf.TensorSpec((), tf.int64))
    return Examples(read, spec=spec, hashes=hashes, targets=labels, name=name)


def decode(content: tf.Tensor, size: int, channels: int) -> tf.Tensor:
    """Returns one image, float32 [size, size, channels] from 0 to 255. A graph function.

    Args:
        content: string []: the bytes of a JPEG, PNG, GIF (its first frame is taken) or BMP file,
            grey, palette or colour.
        size: edge of the image, in pixels.
        channels: 1 (grey) or 3 (RGB); transparency is left out.
    """
    return resize(_pixels(content), size, size, channels)


def decode_each(
    contents: tf.Tensor, height: int, width: int, channels: int, largest: int = LARGEST
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns images from strangers, and which of them are good. A graph function.

    Their headers are checked before they are decoded; then they are decoded and resized one after
    the other, so that one at a time is held in its full size. A bad one does not spoil the others.

    Args:
        contents: string [batch]: the bytes of files as `decode` takes them, of any sizes.
        height, width, channels: see `resize`.
        largest: height and width that an image may have, in pixels.

    Returns:
        float32 [batch, height, width, channels], 0 to 255, and bool [batch]; of an image that is
        larger, broken or in another format zeros, and False.
    """
    count = tf.size(contents, out_type=tf.int64)

    def read(index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return index, resize(_pixels(contents[index], largest), height, width, channels)

    # In a graph only a dataset survives what fails in it. One more image is added behind the last,
    # since there must be one at least.
    more = tf.data.Dataset.from_tensors((count, tf.zeros([height, width, channels])))
    each = tf.data.Dataset.range(count).map(read).ignore_errors().concatenate(more)
    indices, decoded = each.batch(count + 1).get_single_element()
    indices = indices[:, tf.newaxis]
    images = tf.scatter_nd(indices, decoded, [count + 1, height, width, channels])[:-1]
    good = tf.scatter_nd(indices, tf.ones_like(indices[:, 0]), [count + 1])[:-1] > 0
    return tf.ensure_shape(images, [None, height, width, channels]), good


def resize(images: tf.Tensor, height: int, width: int, channels: int) -> tf.Tensor:
    """Returns images as float32 [..., height, width, channels]. A graph function.

    Args:
        images: [h, w, c] or [n, h, w, c] of 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGB, alpha)
            channels; alpha is left out.
        height, width: in pixels; bilinear, with antialiasing where an edge shrinks.
        channels: 1 (grey) or 3 (RGB).
    """
    shape = tf.shape(images)
    images = tf.cond(
        shape[-1] < 3,
        lambda: tf.repeat(images[..., :1], channels, axis=-1),
        lambda: images[..., :3] if channels == 3 else tf.image.rgb_to_grayscale(images[..., :3]),
    )
    # Where nothing shrinks both are the same, and the plain one takes a quarter of the time.
    images = tf.cond(
        tf.reduce_any(shape[-3:-1] > (height, width)),
        lambda: tf.image.resize(images, (height, width), antialias=True),
        lambda: tf.image.resize(images, (height, width)),
    )
    return tf.ensure_shape(images, (*images.shape[:-3], height, width, channels))


def resized(splits: Splits, size: int | None, channels: int) -> Splits:
    """Returns splits whose images are `size` by `size` (None: as they are) with `channels`.

    Nothing is resized before it is read.

    Raises:
        tfbp.UserError: `size` or `channels` is out of range.
    """
    check_format(size, channels)
    height, width, _ = splits.train.spec[0].shape
    height, width = (size, size) if size else (height, width)
    spec = tf.TensorSpec((height, width, channels), tf.float32)

    def change(part: Examples | None) -> Examples | None:
        return part and part.mapped(lambda x: resize(x, height, width, channels), spec)

    return dataclasses.replace(splits, **{name: change(getattr(splits, name)) for name in PARTS})


def check_format(size: int | None, channels: int) -> None:
    """Checks what images are to become.

    Raises:
        tfbp.UserError: `size` is under 1 (None stands for "as it is"), or `channels` not 1 or 3.
    """
    if size is not None and size < 1:
        raise mistake("size", "must be at least 1", size)
    if channels not in (1, 3):
        raise mistake("channels", "must be 1 (grey) or 3 (RGB)", channels)


def _pixels(content: tf.Tensor, largest: int | None = None) -> tf.Tensor:
    if largest is None:
        content = headers.first_frame(content)
    else:
        content, size = headers.read(content)
        within = tf.Assert(tf.reduce_all((size > 0) & (size <= largest)), [size])
        with tf.control_dependencies([within]):
            content = tf.identity(content)
    # The channels of the file: the decoder converts them for some formats and refuses for others.
    image = tf.io.decode_image(content, channels=0, expand_animations=False)
    image.set_shape((None, None, None))
    return image


def _parts(root: pathlib.Path) -> dict[str, pathlib.Path]:
    # A class may be called "train": then it holds files, not folders.
    if "train" not in _subfolders(root) or not _subfolders(root / "train"):
        return {"train": root}
    for name in _subfolders(root):
        if name not in PARTS:
            raise mistake(str(root), "must hold no other folder beside `train`", name, PARTS)
    return {name: root / name for name in PARTS if (root / name).is_dir()}


def _subfolders(folder: pathlib.Path) -> tuple[str, ...]:
    found = (entry.name for entry in os.scandir(folder) if entry.is_dir())
    return tuple(sorted(name for name in found if not name.startswith(".")))


def _labelled_files(
    folder: pathlib.Path, classes: Sequence[str], whole: bool
) -> list[tuple[int, str]]:
    """Returns (label, path) of the files of each class; `whole`: there must be no other class."""
    present = _subfolders(folder)
    for name in classes:
        if name not in present:
            raise mistake("classes", f"must be folders in {folder}", name, present)
    for name in present if whole else ():
        if name not in classes:
            raise mistake("classes", f"must be the same in {folder} as in `train`", name, classes)
    result = []
    for label, name in enumerate(classes):
        files = [
            os.path.join(parent, file)
            for parent, _, files in os.walk(folder / name)
            for file in files
            if not file.startswith(".")
        ]
        if not files:
            raise mistake("classes", "must each hold an image", str(folder / name))
        result += [(label, file) for file in sorted(files)]
    return result


def _file_examples(
    root: pathlib.Path, files: Sequence[str], labels: Sequence[int], size: int, channels: int
) -> Examples:
    hashes = _check_files(files)
    with tf.device("CPU:0"):
        all_files = tf.constant(files)
    return encoded(
        lambda indices: tf.map_fn(tf.io.read_file, tf.gather(all_files, indices)),
        labels=np.array(labels, np.int64),
        hashes=hashes,
        size=size,
        channels=channels,
        name=lambda index: os.path.relpath(files[index], root),
    )


def _check_files(files: Sequence[str]) -> np.ndarray:
    """Returns the content hash of each file, or raises an error that names what cannot be read."""
    files = np.array(files)
    hashes = _hash_decodable(files, batch_size=64)
    bad = np.flatnonzero(hashes == b"")
    # One bad file spoils its batch: look at its neighbours one by one.
    hashes[bad] = _hash_decodable(files[bad], batch_size=1)
    bad = np.flatnonzero(hashes == b"")
    if len(bad):
        more = f"\n{len(bad) - 1} more cannot be read either." if len(bad) > 1 else ""
        file = pathlib.Path(files[bad[0]])
        raise UserError(f"The image {file} cannot be read: {_why_unreadable(file)}.{more}")
    return hashes


def _hash_decodable(files: np.ndarray, batch_size: int) -> np.ndarray:
    """Returns the content hash, dtype "S64", of each file of the batches that decode, else b""."""

    def look(file: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        content = tf.io.read_file(file)
        # The height is asked for because a decoding that nothing reads is optimised away.
        return content, tf.shape(_pixels(content))[0]

    def look_at_all(number: tf.Tensor, batch: tf.Tensor) -> tuple[tf.Tensor, ...]:
        return number, *tf.map_fn(look, batch, fn_output_signature=(tf.string, tf.int32))

    hashes = np.zeros(len(files), "S64")
    dataset = tf.data.Dataset.from_tensor_slices(files).batch(batch_size).enumerate()
    dataset = dataset.map(look_at_all, num_parallel_calls=tf.data.AUTOTUNE)
    for number, contents, _ in dataset.ignore_errors().as_numpy_iterator():
        start = number * batch_size
        hashes[start : start + len(contents)] = [
            hashlib.sha256(content).hexdigest() for content in contents
        ]
    return hashes


def _why_unreadable(file: pathlib.Path) -> str:
    try:
        content = file.read_bytes()
    except OSError as error:
        return str(error)
    return "it is not a whole JPEG, PNG, GIF or BMP file" if content else "it is empty"
