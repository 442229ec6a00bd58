"""The size that the header of an encoded image announces, read without decoding the image."""

import re
import struct

_FILL = re.compile(rb"\xff+")
# Each holds up to 64 KiB: no profile and no preview is as long as that.
_MOST_SEGMENTS = 1000


def pixels(content: bytes) -> int | None:
    """Returns height times width of a JPEG, PNG, GIF or BMP; None for what is none of them."""
    try:
        if content.startswith(b"\x89PNG\r\n\x1a\n"):
            width, height = struct.unpack_from(">II", content, 16)
        elif content.startswith((b"GIF87a", b"GIF89a")):
            width, height = struct.unpack_from("<HH", content, 6)
        elif content.startswith(b"BM"):
            width, height = map(abs, struct.unpack_from("<ii", content, 18))
        elif content.startswith(b"\xff\xd8"):
            width, height = _jpeg(content)
        else:
            return None
    except struct.error:  # The file ends before its size: no decoder gets further.
        return None
    return width * height


def _jpeg(content: bytes) -> tuple[int, int]:
    """Returns width and height of the largest frame header (SOF0 to SOF15) before the scan.

    The markers are those of ITU-T T.81, table B.1; C4, C8 and CC among them start no frame. One
    with more segments than any program writes counts as the largest that there can be.
    """
    position, size = 2, (0, 0)
    for _ in range(_MOST_SEGMENTS):
        fill = _FILL.match(content, position)
        if fill is None:
            return size
        position = fill.end() - 1
        marker = content[position + 1] if position + 1 < len(content) else 0xD9
        if marker in (0xD9, 0xDA):
            return size
        if 0xD0 <= marker <= 0xD8 or marker == 0x01:  # without a length
            position += 2
            continue
        (length,) = struct.unpack_from(">H", content, position + 2)
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", content, position + 5)
            size = max(size, (width, height), key=lambda found: found[0] * found[1])
        position += 2 + max(length, 2)
    return 0xFFFF, 0xFFFF
