"""What an encoded image says of itself before it is decoded, read in the graph.

A PNG of 35 KB can hold 6,000 × 6,000 pixels, and a GIF thousands of frames, all of which its
decoder unpacks to give the first: what decoding would take is known from the header alone.
"""

from collections.abc import Iterable

import tensorflow as tf

# How a file of each format begins.
JPEG, PNG, GIF, BMP = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"BM"
FORMATS = (JPEG, PNG, GIF, BMP)

# Bytes of the shortest headers that are read here. No image is as short.
_LEAST = 26

# Extensions of a GIF before its first frame; encoders write up to about five.
_EXTENSIONS = 64


def read(content: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The file (of a GIF its first frame alone) and its size. A graph function.

    Args:
        content: string []: the bytes of a JPEG, PNG, GIF or BMP file.

    Returns:
        string [], and [height, width] in pixels: int32 [2]; 2^31 and more are negative there.

    Raises:
        tf.errors.InvalidArgumentError: another format, or a header that is broken; when it runs.
    """
    known = tf.reduce_any([_starts(content, mark) for mark in FORMATS])
    # Reading behind the end would be refused with the bytes of the file in the message, which
    # Python cannot decode.
    known &= tf.strings.length(content) >= _LEAST
    with tf.control_dependencies([tf.Assert(known, ["neither JPEG, PNG, GIF nor BMP"])]):
        content = tf.identity(content)
    return tf.case(
        [
            (_starts(content, JPEG), lambda: (content, _jpeg(content))),
            (_starts(content, PNG), lambda: (content, _png(content))),
            (_starts(content, GIF), lambda: _gif(content)),
        ],
        default=lambda: (content, _bmp(content)),
    )


def formats(contents: Iterable[bytes]) -> frozenset[bytes]:
    """Those of `FORMATS` that occur among files."""
    return frozenset(mark for content in contents for mark in FORMATS if content.startswith(mark))


def first_frame(content: tf.Tensor) -> tf.Tensor:
    """The file, of a GIF its first frame alone: what `read` returns, without its checks."""
    return tf.cond(_starts(content, GIF), lambda: _gif(content)[0], lambda: content)


def palette(content: tf.Tensor) -> tf.Tensor:
    """The colours of a BMP of 8 bits a pixel, uint8 [colours, 3]; of other files [0, 3].

    TensorFlow decodes such a file to the numbers of its colours, as if they were shades of grey.
    """

    def colours() -> tf.Tensor:
        # The table lies between the headers, whose second says its length, and the pixels.
        pixels, second = (
            tf.io.decode_raw(tf.strings.substr(content, at, 4), tf.int32)[0] for at in (10, 14)
        )
        table = _part(content, 14 + second, pixels - 14 - second)
        return tf.reshape(tf.io.decode_raw(table, tf.uint8), [-1, 4])[:, 2::-1]  # blue comes first

    indexed = tf.cond(
        _starts(content, BMP),
        lambda: tf.equal(_part(content, 28, 2), b"\x08\0"),
        lambda: tf.constant(False),
    )
    return tf.cond(indexed, colours, lambda: tf.zeros([0, 3], tf.uint8))


def _part(content: tf.Tensor, start: tf.Tensor | int, size: tf.Tensor | int) -> tf.Tensor:
    """Bytes of a file, but none behind its end, which would be refused: see `read`."""
    start = tf.clip_by_value(start, 0, tf.strings.length(content))
    return tf.strings.substr(content, start, size)


def _starts(content: tf.Tensor, mark: bytes) -> tf.Tensor:
    return tf.equal(tf.strings.substr(content, 0, len(mark)), mark)


def _jpeg(content: tf.Tensor) -> tf.Tensor:
    return tf.image.extract_jpeg_shape(content)[:2]


def _png(content: tf.Tensor) -> tf.Tensor:
    # The first chunk, which must be IHDR: length, name, width, height (PNG 3rd edition, 11.2.1).
    fields = tf.strings.substr(content, 16, 8)
    return tf.ensure_shape(tf.io.decode_raw(fields, tf.int32, little_endian=False), [2])[::-1]


def _bmp(content: tf.Tensor) -> tf.Tensor:
    # BITMAPINFOHEADER's width and height; negative where the rows go downwards.
    fields = tf.strings.substr(content, 18, 8)
    return tf.abs(tf.ensure_shape(tf.io.decode_raw(fields, tf.int32), [2])[::-1])


def _gif(content: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Cuts a GIF off behind its first frame (GIF89a, sections 15 to 24)."""
    data = tf.cast(tf.io.decode_raw(content, tf.uint8), tf.int32)

    def colours(flags: tf.Tensor) -> tf.Tensor:
        """The bytes of the colour table that the flags of a descriptor announce."""
        return tf.where(flags >= 128, 6 * 2 ** (flags % 8), 0)

    ends = _ends(data)
    (block,) = tf.while_loop(
        lambda block: tf.equal(data[block], ord("!")),
        lambda block: [tf.gather(ends, block + 2) + 1],
        [13 + colours(data[10])],
        maximum_iterations=_EXTENSIONS,
    )
    with tf.control_dependencies([tf.Assert(tf.equal(data[block], ord(",")), [block])]):
        frame = tf.identity(block)
    end = tf.gather(ends, frame + 11 + colours(data[frame + 9]))
    screen, area = data[6:10], tf.ensure_shape(data[frame + 5 : frame + 9], [4])
    width, height = (
        tf.maximum(*(fields[at] + 256 * fields[at + 1] for fields in (screen, area)))
        for at in (0, 2)
    )
    return tf.strings.substr(content, 0, end + 1) + b";", tf.stack([height, width])


def _ends(data: tf.Tensor) -> tf.Tensor:
    """Where the chain of sub-blocks that begins at each byte ends: int32 [bytes].

    Each sub-block is its length and so many bytes, and one of length 0 ends the chain. All chains
    are followed at once, by jumps that double: a loop over the sub-blocks of a file that is made of
    tiny ones would take seconds.
    """
    size = tf.size(data)
    positions = tf.range(size)
    jumps = tf.minimum(positions + tf.where(data > 0, data + 1, 0), size - 1)
    (jumps,) = tf.while_loop(
        lambda jumps: tf.reduce_any(jumps != tf.gather(jumps, jumps)),
        lambda jumps: [tf.gather(jumps, jumps)],
        [jumps],
    )
    return jumps
