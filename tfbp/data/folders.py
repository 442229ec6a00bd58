"""Folders of image files as splits."""

import dataclasses
import os
import pathlib
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tfbp.data import image_files, images
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
    on_bad_example: image_files.OnBad = "fail",
) -> Splits:
    """Returns the splits of a folder of images: JPEG, PNG, GIF (its first frame) and BMP files.

    The folder holds one folder for each class, or `train/`, and perhaps `validation/` and `test/`,
    with the same class folders in each; what is missing of these is cut from `train/`. Hidden files
    are passed over. Every file is hashed and decoded once here; training decodes what it reads.
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
        on_bad_example: "fail": files that are no whole images are an error, which lists them;
            "skip": they are left out, and a warning lists them. Which they are is up to their
            content alone, and more than 1 % of all files are an error nevertheless.

    Raises:
        tfbp.UserError: no such folder or class, an empty class, one class only, other classes in
            `validation/` or `test/`, files that are no whole images, or a number out of range.
    """
    images.check_format(size, channels)
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
    hashes, encoding = image_files.check([file for *_, file in found], root, on_bad_example)
    kept = np.flatnonzero(hashes != b"")
    parts, labels, files = zip(*(found[row] for row in kept), strict=True)
    examples = _examples(root, files, labels, hashes[kept], encoding, size, channels)
    rows = {part: np.flatnonzero(np.array(parts) == part) for part in folders}
    for part in folders:
        if not len(rows[part]):
            raise mistake("path", f"must hold whole images in `{part}`", str(path))
    given = {part: examples.take(rows[part]) for part in folders}
    fractions = {"validation": validation, "test": test}
    splits = Splits.cut(given.pop("train"), classes=names, seed=seed, **(fractions | given))
    if per_class is not None:
        splits = splits.keep_per_class(per_class, seed=seed)
    return dataclasses.replace(splits, description=f"folder:{path}")


def _parts(root: pathlib.Path) -> dict[str, pathlib.Path]:
    # A class may be called "train": then it holds files, not folders.
    if "train" not in _subfolders(root) or not _subfolders(root / "train"):
        return {"train": root}
    for name in _subfolders(root):
        if name not in images.PARTS:
            raise mistake(str(root), "must hold no other folder beside `train`", name, images.PARTS)
    return {name: root / name for name in images.PARTS if (root / name).is_dir()}


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
