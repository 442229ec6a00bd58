"""The size that the header of an encoded image announces, read without decoding the image."""

import re
import struct
from collections.abc import Iterable
from typing import Any

_FILL = re.compile(rb"\xff+")
# Each holds up to 64 KiB: no profile and no preview is as long as that.
_MOST_SEGMENTS = 1000
# Blocks of a GIF, and the parts of up to 255 bytes that they consist of.
_MOST_BLOCKS = 100_000
_DECODERS = re.compile("Decode(AndCrop)?(Image|Jpeg|Png|Gif|Bmp|WebP)")


def decoded_by(graph: Any) -> bool:
    """Returns whether a graph (a GraphDef) decodes images, itself or in a function."""
    functions = (node for function in graph.library.function for node in function.node_def)
    nodes: Iterable[Any] = (*graph.node, *functions)
    return any(_DECODERS.match(node.op) for node in nodes)


def pixels(content: bytes) -> int | None:
    """Returns height times width of a JPEG, PNG, GIF or BMP; of a GIF those of its largest frame.

    None where it cannot be told: of another format, or of a file that is broken.
    """
    try:
        if content.startswith(b"\x89PNG\r\n\x1a\n"):
            width, height = struct.unpack_from(">II", content, 16)
            # The first chunk must be this one (PNG 3rd edition, 5.6).
            return width * height if content[12:16] == b"IHDR" else None
        if content.startswith((b"GIF87a", b"GIF89a")):
            return _gif(content)
        if content.startswith(b"BM"):
            width, height = map(abs, struct.unpack_from("<ii", content, 18))
            return width * height
        if content.startswith(b"\xff\xd8"):
            return _jpeg(content)
    except (struct.error, IndexError):  # The file ends before its size.
        return None
    return None


def _gif(content: bytes) -> int | None:
    """Returns the pixels of the largest frame, or of the screen (GIF89a, sections 18 to 26)."""
    width, height, flags = struct.unpack_from("<HHB", content, 6)
    position = 13 + _colours(flags)
    for _ in range(_MOST_BLOCKS):
        kind = content[position : position + 1]
        if kind == b",":
            frame = struct.unpack_from("<HHHHB", content, position + 1)
            width, height = max(width, frame[0] + frame[2]), max(height, frame[1] + frame[3])
            position += 11 + _colours(frame[4])
        elif kind == b"!":
            position += 2
        else:  # the end, which some files lack
            return width * height if kind in (b";", b"") else None
        for _ in range(_MOST_BLOCKS):
            length = content[position]
            position += 1 + length
            if not length:
                break
    return None


def _colours(flags: int) -> int:
    """Returns the bytes of the colour table that the flags of a descriptor announce."""
    return 6 << (flags & 7) if flags & 0x80 else 0


def _jpeg(content: bytes) -> int | None:
    """Returns the pixels of the largest frame header (SOF0 to SOF15) before the scan.

    The markers are those of ITU-T T.81, table B.1; C4, C8 and CC among them start no frame. Fill
    bytes before a marker are legal, others are not.
    """
    position, size = 2, 0
    for _ in range(_MOST_SEGMENTS):
        fill = _FILL.match(content, position)
        if fill is None:
            return None
        position = fill.end() - 1
        marker = content[position + 1]
        if marker in (0xD9, 0xDA):
            return size or None
        if 0xD0 <= marker <= 0xD8 or marker == 0x01:  # without a length
            position += 2
            continue
        (length,) = struct.unpack_from(">H", content, position + 2)
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", content, position + 5)
            size = max(size, width * height)
        position += 2 + max(length, 2)
    return None
