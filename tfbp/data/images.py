"""Images as examples: decoding and resizing."""

import dataclasses
from collections.abc import Callable, Collection

import numpy as np
import tensorflow as tf

from tfbp.data import headers
from tfbp.data.examples import Batch, Examples
from tfbp.data.splits import Splits
from tfbp.errors import mistake

# Height and width, in pixels, that an image of a stranger may have.
LARGEST = 4096
# Pixels that any image may have: of four bytes, as much as TensorFlow's decoders unpack.
MOST_PIXELS = 2**27


@dataclasses.dataclass(frozen=True)
class Encoding:
    """What is known of all files of a set before they are read; the default holds for any.

    The graph that decodes them leaves out what none of them needs: to ask each small image for a
    palette, for further frames and for its size takes longer than to decode it.

    Attributes:
        formats: those of `headers` that there are.
        shape: height, width and channels, as `examine` returns the images; None where they differ.
    """

    formats: Collection[bytes] = headers.FORMATS
    shape: tuple[int | None, int | None, int | None] = (None, None, None)


def encoded(
    fetch: Callable[[tf.Tensor], tf.Tensor],
    *,
    labels: np.ndarray,
    hashes: np.ndarray,
    size: int,
    channels: int,
    load: Callable[[tf.Tensor], tf.Tensor] = tf.identity,
    encoding: Encoding = Encoding(),
    name: Callable[[int], str] = "row {}".format,
) -> Examples:
    """Labelled images that are decoded when they are read.

    Args:
        fetch: graph function from indices (int64 [n]) to what `load` takes (string [n]).
        labels: int64 [size].
        hashes: of the bytes, see `Examples`.
        size, channels: see `decode`.
        load: graph function from one item of `fetch` to the bytes of the file (string []); the
            default takes the bytes themselves.
        encoding: what is known of all files.
        name: what an error calls the image of an index.
    """
    with tf.device("CPU:0"):
        all_labels = tf.constant(labels)
    x_spec = tf.TensorSpec((size, size, channels), tf.float32)
    resizes = encoding.shape != (size, size, channels)

    def decoded(item: tf.Tensor) -> tf.Tensor:
        content = load(item)
        return decode(content, size, channels, encoding) if resizes else _frame(content, encoding)

    def read(indices: tf.Tensor) -> Batch:
        # What needs no resizing is batched as bytes, and converted to numbers all at once.
        signature = tf.TensorSpec(x_spec.shape, tf.float32 if resizes else tf.uint8)
        x = tf.map_fn(decoded, fetch(indices), fn_output_signature=signature)
        return tf.cast(x, tf.float32), tf.gather(all_labels, indices)

    spec = (x_spec, tf.TensorSpec((), tf.int64))
    return Examples(
        read,
        spec=spec,
        hashes=hashes,
        targets=labels,
        name=name,
        preparation=f"decoded to {size} pixels and {channels} channels",
    )


def decode(
    content: tf.Tensor, size: int, channels: int, encoding: Encoding = Encoding()
) -> tf.Tensor:
    """Decodes one image to float32 [size, size, channels], 0 to 255. A graph function.

    Args:
        content: string []: the bytes of a JPEG, PNG, GIF (its first frame is taken) or BMP file,
            grey, palette, colour or CMYK, which `examine` passes. Of 16 bits a channel the upper 8
            are taken. An EXIF orientation is not applied.
        size: edge of the image, in pixels.
        channels: 1 (grey) or 3 (RGB); transparency is left out.
        encoding: what is known of the file. It changes no pixel.

    Raises:
        tf.errors.InvalidArgumentError: the image has another shape than `encoding` says; when it
            runs.
    """
    return resize(_frame(content, encoding), size, size, channels)


def decode_each(
    contents: tf.Tensor, height: int, width: int, channels: int, largest: int = LARGEST
) -> tuple[tf.Tensor, tf.Tensor]:
    """Decodes images from strangers and says which of them are good. A graph function.

    They pass `examine` and are resized one after the other, so that one at a time is held in its
    full size. A bad one does not spoil the others.

    Args:
        contents: string [batch]: the bytes of files as `decode` takes them, of any sizes.
        height, width, channels: see `resize`.
        largest: height and width that an image may have, in pixels.

    Returns:
        float32 [batch, height, width, channels], 0 to 255, and bool [batch]; of an image that is
        larger, broken or in another format zeros, and False.
    """
    count = tf.size(contents, out_type=tf.int64)

    @tf.autograph.experimental.do_not_convert
    def read(index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        image, _ = examine(contents[index], largest)
        return index, resize(image, height, width, channels)

    # In a graph only a dataset survives what fails in it. One more image is added behind the last,
    # since there must be one at least.
    more = tf.data.Dataset.from_tensors((count, tf.zeros([height, width, channels])))
    each = tf.data.Dataset.range(count).map(read).ignore_errors().concatenate(more)
    indices, decoded = each.batch(count + 1).get_single_element()
    indices = indices[:, tf.newaxis]
    images = tf.scatter_nd(indices, decoded, [count + 1, height, width, channels])[:-1]
    good = tf.scatter_nd(indices, tf.ones_like(indices[:, 0]), [count + 1])[:-1] > 0
    return tf.ensure_shape(images, [None, height, width, channels]), good


def examine(content: tf.Tensor, largest: int | None = None) -> tuple[tf.Tensor, tf.Tensor]:
    """Decodes and checks an image that nobody has looked at yet. A graph function.

    What passes here is decoded alike, by `decode`, from then on.

    Args:
        content: string []: the bytes of a file.
        largest: height and width that the image may have, in pixels.

    Returns:
        uint8 [height, width, channels], of a GIF the first frame; int32 [height, width].

    Raises:
        tf.errors.InvalidArgumentError: it is larger, or of more than `MOST_PIXELS`, which its
            header says before it is decoded; broken, cut short, or not JPEG, PNG, GIF or BMP; when
            it runs.
    """
    content, size = headers.read(content)
    height, width = tf.unstack(tf.cast(size, tf.int64))
    # A size that does not fit an int32 is negative.
    fits = (height > 0) & (width > 0) & (height * width <= MOST_PIXELS)
    if largest is not None:
        fits &= tf.maximum(height, width) <= largest
    with tf.control_dependencies([tf.Assert(fits, [size])]):
        content = tf.identity(content)
    image = _pixels(content)
    with tf.control_dependencies([tf.Assert(~_cut_short(content, image), ["cut short"])]):
        return tf.identity(image), size


def resize(images: tf.Tensor, height: int, width: int, channels: int) -> tf.Tensor:
    """Resizes images to float32 [..., height, width, channels]. A graph function.

    Args:
        images: [h, w, c] or [n, h, w, c] of 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGB, alpha)
            channels; alpha is left out.
        height, width: in pixels; bilinear, with antialiasing where an edge shrinks.
        channels: 1 (grey) or 3 (RGB).
    """
    *_, rows, columns, depth = images.shape
    shape = tf.shape(images)
    images = _cond(
        shape[-1] < 3 if depth is None else depth < 3,
        lambda: tf.repeat(images[..., :1], channels, axis=-1),
        lambda: images[..., :3] if channels == 3 else tf.image.rgb_to_grayscale(images[..., :3]),
    )
    # Where nothing shrinks both are the same, and the plain one takes a quarter of the time.
    shrinks = (
        tf.reduce_any(shape[-3:-1] > (height, width))
        if None in (rows, columns)
        else rows > height or columns > width
    )
    images = _cond(
        shrinks,
        lambda: tf.image.resize(images, (height, width), antialias=True),
        lambda: tf.image.resize(images, (height, width)),
    )
    # TensorFlow leaves an image that is known to have its size in its own type.
    images = tf.cast(images, tf.float32)
    return tf.ensure_shape(images, (*images.shape[:-3], height, width, channels))


def resized(splits: Splits, size: int | None, channels: int) -> Splits:
    """Resizes images to `size` by `size` (None: as they are) and `channels`.

    Nothing is resized before it is read.

    Raises:
        tfbp.UserError: `size` or `channels` is out of range.
    """
    check_format(size, channels)
    height, width, _ = splits.train.spec[0].shape
    height, width = (size, size) if size else (height, width)
    spec = tf.TensorSpec((height, width, channels), tf.float32)

    done = f"resized to {height} × {width} pixels and {channels} channels"

    def change(part: Examples) -> Examples:
        return part.mapped(lambda x: resize(x, height, width, channels), spec, preparation=done)

    return dataclasses.replace(
        splits,
        train=change(splits.train),
        validation=splits.validation and change(splits.validation),
        test=splits.test and change(splits.test),
    )


def check_format(size: int | None, channels: int) -> None:
    """Checks what images are to become.

    Raises:
        tfbp.UserError: `size` is no whole number of at least 1 (None stands for "as it is"), or
            `channels` not 1 or 3.
    """
    if size is not None and (isinstance(size, bool) or not isinstance(size, (int, np.integer))):
        rule = "must be one whole number, the edge of square images in pixels"
        raise mistake("size", rule, size)
    if size is not None and size < 1:
        raise mistake("size", "must be at least 1", size)
    if channels not in (1, 3):
        raise mistake("channels", "must be 1 (grey) or 3 (RGB)", channels)


def _cond(condition: bool | tf.Tensor, yes: Callable, no: Callable) -> tf.Tensor:
    """Like `tf.cond`, without a branch where the condition is known as the graph is built."""
    if isinstance(condition, bool):
        return yes() if condition else no()
    return tf.cond(condition, yes, no)


def _frame(content: tf.Tensor, encoding: Encoding) -> tf.Tensor:
    """The image of a file, of a GIF the first frame: see `_pixels`."""
    if headers.GIF in encoding.formats:
        content = headers.first_frame(content)
    return tf.ensure_shape(_pixels(content, encoding.formats), encoding.shape)


def _pixels(content: tf.Tensor, formats: Collection[bytes] = headers.FORMATS) -> tf.Tensor:
    """An image as its file holds it, uint8 [height, width, channels].

    Args:
        formats: one of which the file is of.
    """
    # The channels of the file: the decoder converts them for some formats and refuses for others.
    image = tf.io.decode_image(content, channels=0, expand_animations=False)
    image.set_shape((None, None, None))
    if headers.BMP not in formats:
        return image
    colours = headers.palette(content)
    return tf.cond(
        tf.size(colours) > 0,
        lambda: tf.gather(colours, tf.cast(image[..., 0], tf.int32)),
        lambda: image,
    )


def _cut_short(content: tf.Tensor, image: tf.Tensor) -> tf.Tensor:
    """Tells whether a decoded image is a JPEG whose data ends before its last line.

    Without its end marker a file is refused by the decoder (`try_recover_truncated` is off). With
    one behind the cut it is not: all coefficients that are missing count as zero, which is grey,
    and only libjpeg's own log would say so. More data in front of the marker changes such an image,
    and no other. Of a progressive JPEG that has lost its finer scans alone nothing is missing here.
    """

    def changes() -> tf.Tensor:
        data = tf.io.decode_raw(content, tf.uint8)
        ends = tf.where((data[:-1] == 0xFF) & (data[1:] == 0xD9))
        end = tf.cast(ends[-1, 0], tf.int32)
        longer = [
            tf.strings.substr(content, 0, end),
            tf.constant(b"\x55" * 64),
            tf.strings.substr(content, end, tf.size(data) - end),
        ]
        again = tf.io.decode_image(tf.strings.join(longer), channels=0, expand_animations=False)
        return tf.reduce_any(again != image)

    # Zero coefficients are 128, and in the four inverted colours of CMYK 128 · 128 / 255 = 64. Few
    # whole images end so: of those the log says that they hold extraneous bytes.
    last = image[-1, -8:]
    grey = tf.reduce_all(last == 128) | tf.reduce_all(last == 64)
    return tf.cond(tf.io.is_jpeg(content) & grey, changes, lambda: tf.constant(False))
