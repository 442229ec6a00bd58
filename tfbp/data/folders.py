"""Folders of image files as splits."""

import dataclasses
import os
import pathlib
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tfbp.data import class_folders, grouping, image_files, images
from tfbp.data.examples import Examples
from tfbp.data.splits import Splits
from tfbp.errors import mistake


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
    group: str | None = None,
    on_bad_example: image_files.OnBad = "fail",
) -> Splits:
    """Loads a folder of images: JPEG, PNG, GIF (its first frame) and BMP files.

    The folder holds one folder for each class, or `train/`, and perhaps `validation/` and `test/`,
    with the same class folders in each; what is missing of these is cut from `train/`. They may be
    called `Training`, `val`, `valid`, `dev`, `eval` or `Testing` too. All files below the folder of
    a class are of that class. Links are followed, each folder once; hidden files, and what an
    operating system leaves, are passed over at every level, and a line of the log counts what was.
    Every file is hashed and decoded once here; training decodes what it reads.
    A file is what its content says, whatever its name. An EXIF orientation is not applied, neither
    in training nor by an export; files that carry one are counted in a warning.

    Args:
        path: the folder.
        size: edge of the square images, in pixels, that the examples are resized to (bilinear).
        channels: 1 (grey) or 3 (RGB).
        validation, test: fractions cut from the training folder, in [0, 1).
        seed: which examples are held out, and which labels are kept.
        classes: the class folders to use, in the order of their labels. Default: all, sorted.
        per_class: when given, how many training examples of each class are kept.
        group: a regular expression that finds in each file's name (from the folder on) what the
            image belongs to: `(p[0-9]+)_` keeps all of "cat/p17_01.jpg" and "dog/p17_02.jpg" in one
            split, see `Splits.from_arrays`.
        on_bad_example: "fail": files that are no whole images are an error, which lists them;
            "skip": they are left out, and a warning lists them. Which they are is up to their
            content alone, and more than 1 % of all files are an error nevertheless.

    Raises:
        tfbp.UserError: no such folder or class, an empty class, one class only, other classes in
            `validation/` or `test/`, splits or folders of classes in the place of classes, files
            that are no whole images, a name without a group, a group in two given splits, or a
            number out of range.
    """
    images.check_format(size, channels)
    root = pathlib.Path(path).expanduser()
    if not root.is_dir():
        raise mistake("path", "must be a folder that exists", str(path))
    tree = class_folders.Tree(root, classes)
    listed = tree.files()
    hashes, encoding = image_files.check([file for *_, file in listed], root, on_bad_example)
    kept = np.flatnonzero(hashes != b"")
    parts, labels, files = zip(*(listed[row] for row in kept), strict=True)
    examples = _examples(root, files, labels, hashes[kept], encoding, size, channels)
    rows = {part: np.flatnonzero(np.array(parts) == part) for part in tree.parts}
    for part, folder in tree.parts.items():
        if not len(rows[part]):
            raise mistake("path", f"must hold whole images in `{folder.name}`", str(path))
    groups = None
    if group is not None:
        names = [image_files.name(file, root) for file in files]
        groups = np.array(grouping.from_names(names, group))
        grouping.check_apart(groups, rows if len(rows) > 1 else {})
    given = {part: examples.take(rows[part]) for part in tree.parts}
    splits = Splits.cut(
        given["train"],
        classes=tree.classes,
        validation=given.get("validation", validation),
        test=given.get("test", test),
        seed=seed,
        groups=None if groups is None else groups[rows["train"]],
    )
    if per_class is not None:
        splits = splits.keep_per_class(per_class, seed=seed)
    return dataclasses.replace(splits, description=f"folder:{path}")


def _examples(
    root: pathlib.Path,
    files: Sequence[str],
    labels: Sequence[int],
    hashes: np.ndarray,
    encoding: images.Encoding,
    size: int,
    channels: int,
) -> Examples:
    with tf.device("CPU:0"):
        all_files = tf.constant([os.fsencode(file) for file in files])
    return images.encoded(
        lambda indices: tf.gather(all_files, indices),
        load=tf.io.read_file,
        labels=np.array(labels, np.int64),
        hashes=hashes,
        encoding=encoding,
        size=size,
        channels=channels,
        name=lambda index: image_files.name(files[index], root),
    )
