"""Which image files are whole, why the others are not, and what their contents hash to."""

import functools
import hashlib
import os
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import tensorflow as tf
from absl import logging

from tfbp.data import exif, headers, images
from tfbp.errors import UserError, mistake

OnBad = Literal["fail", "skip"]

# Part of all files that may be left out.
_MOST_SKIPPED = 0.01
# Bad files that a message names.
_NAMED = 20
# Formats that are mistaken for those that can be read.
_OTHERS = {
    "a WebP file": rb"RIFF....WEBP",
    "a TIFF file": rb"II\*\0|MM\0\*",
    "a HEIF or AVIF file": rb"....ftyp(hei|hev|mif1|msf1|avi)",
    "an HTML page": rb"\s*<(!doctype )?html",
}
# Whether a file of a format has its end.
_ENDED = {
    headers.JPEG: lambda content: content.rfind(b"\xff\xd9") > content.rfind(b"\xff\xda"),
    headers.PNG: lambda content: b"IEND" in content,
    headers.GIF: lambda content: content.rstrip(b"\0").endswith(b";"),
    headers.BMP: lambda content: len(content) >= int.from_bytes(content[2:6], "little"),
}


def check(
    files: Sequence[str], root: pathlib.Path, on_bad: OnBad
) -> tuple[np.ndarray, images.Encoding]:
    """Hashes files (those to be left out hash to nothing) and says what the others share.

    Each file is read and decoded once. One warning each counts the files that are left out, that
    carry an EXIF orientation, and that are larger than an export takes by default.

    Args:
        files: paths.
        root: the folder that their names in a message begin in.
        on_bad: whether files that are no whole images are an error, or are left out.

    Returns:
        Hex SHA-256 of the contents, [files], dtype "S64"; how those that stay are encoded.

    Raises:
        tfbp.UserError: files are no whole images, with `on_bad="skip"` more than 1 % of them; the
            message names them with their reasons. Or `on_bad` is neither.
    """
    check_on_bad(on_bad)
    hashes, encoding, turned, large = _look(files)
    bad = [file for file, digest in zip(files, hashes, strict=True) if not digest]
    if bad:
        report = _report(bad, len(files), root)
        if on_bad == "fail":
            mend = "`on_bad_example=skip` leaves such files out, up to 1 % of all."
            raise UserError(f"{report}\nMend or remove them. {mend}")
        if len(bad) > _MOST_SKIPPED * len(files):
            raise UserError(f"{report}\n`on_bad_example=skip` leaves out 1 % of all at most.")
        logging.warning("%s\nThey are left out.", report)
    if turned:
        logging.warning(
            "Image files in %s with an EXIF orientation other than 1: %s. It is applied neither in "
            "training nor by an export: where an image has to be turned, turn its pixels.",
            root,
            f"{turned:,}",
        )
    if large:
        logging.warning(
            "Image files in %s that are higher or wider than %s pixels: %s. They are trained on, "
            "but an export refuses such files unless its task sets another `largest_image`.",
            root,
            f"{images.LARGEST:,}",
            f"{large:,}",
        )
    return hashes, encoding


def check_on_bad(on_bad: str) -> None:
    """Checks what is to be done with bad examples.

    Raises:
        tfbp.UserError: neither "fail" nor "skip".
    """
    if on_bad not in ("fail", "skip"):
        raise mistake("on_bad_example", "must be `fail` or `skip`", on_bad, ("fail", "skip"))


def name(file: str, root: pathlib.Path) -> str:
    """What a message calls a file; bytes that are no text are escaped."""
    return os.fsencode(os.path.relpath(file, root)).decode(errors="backslashreplace")


def why_bad(file: str) -> str:
    """Why a file that `images.examine` refuses is no whole image: "it is empty"."""
    try:
        content = pathlib.Path(file).read_bytes()
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    if not content:
        return "it is empty"
    begins = [mark for mark in _ENDED if content.startswith(mark)]
    if not begins:
        for other, pattern in _OTHERS.items():
            if re.match(pattern, content, re.DOTALL | re.IGNORECASE):
                return f"it is {other}, not JPEG, PNG, GIF or BMP"
        return "it is not a JPEG, PNG, GIF or BMP file"
    if not _ENDED[begins[0]](content):
        return "it is truncated"
    try:
        frame, size = headers.read(tf.constant(content))
    except tf.errors.OpError:
        return "its header is broken"
    height, width = size.numpy().tolist()
    if height * width > images.MOST_PIXELS or min(height, width) < 0:
        return f"it is too large: more than {images.MOST_PIXELS:,} pixels"
    try:
        tf.io.decode_image(frame, expand_animations=False)
    except tf.errors.OpError as error:
        # Without the name of the operation.
        reason = re.sub(r"\{\{.*?\}\}|\[Op:.*?\]", "", error.message).strip(" .")
        return f"it cannot be decoded: {reason}"
    return "it is truncated: the rest of the image is missing"


def _report(bad: Sequence[str], count: int, root: pathlib.Path) -> str:
    head = f"Files in {root} that are no whole images, {len(bad):,} of {count:,}:"
    lines = [f" - {name(file, root)}: {why_bad(file)}" for file in bad[:_NAMED]]
    if len(bad) > _NAMED:
        lines.append(f"   … and {len(bad) - _NAMED:,} more")
    return "\n".join([head, *lines])


@functools.cache
def _examine() -> Callable:
    """Returns a graph function from the row and path of a file to its row, content, size in its
    header and decoded shape, traced once: that takes longer than to examine a hundred files.
    """

    @tf.function(
        input_signature=[tf.TensorSpec([], tf.int64), tf.TensorSpec([], tf.string)], autograph=False
    )
    def examine(row: tf.Tensor, file: tf.Tensor) -> tuple[tf.Tensor, ...]:
        content = tf.io.read_file(file)
        image, size = images.examine(content)
        return row, content, size, tf.shape(image)

    return examine


def _look(files: Sequence[str]) -> tuple[np.ndarray, images.Encoding, int, int]:
    """The hash of each file, b"" where it is bad; what the others share; how many of them are
    turned; how many are large.
    """

    hashes, turned, large = np.zeros(len(files), "S64"), 0, 0
    shapes = np.zeros((len(files), 3), np.int32)
    formats: frozenset[bytes] = frozenset()
    paths = np.array([os.fsencode(file) for file in files], object)
    dataset = tf.data.Dataset.from_tensor_slices(paths).enumerate()
    dataset = dataset.map(_examine(), num_parallel_calls=tf.data.AUTOTUNE).ignore_errors()
    for rows, contents, sizes, decoded in dataset.batch(64).as_numpy_iterator():
        shapes[rows] = decoded
        hashes[rows] = [hashlib.sha256(content).hexdigest() for content in contents]
        turned += sum(exif.orientation(content) != 1 for content in contents)
        large += int((sizes.max(axis=1) > images.LARGEST).sum())
        formats |= headers.formats(contents)
    edges = shapes[hashes != b""].T
    height, width, channels = (
        int(edge[0]) if len(np.unique(edge)) == 1 else None for edge in edges
    )
    return hashes, images.Encoding(formats, (height, width, channels)), turned, large
