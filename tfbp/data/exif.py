"""The orientation that a camera wrote into an image file."""

import struct

# Where a TIFF block with the tags follows: in a JPEG's APP1 segment, and in a PNG's chunk.
_MARKS = (b"Exif\0\0", b"eXIf")
_BYTE_ORDERS = {b"II*\0": "<", b"MM\0*": ">"}
_ORIENTATION, _SHORT = 0x0112, 3


def orientation(content: bytes) -> int:
    """How an encoded image is to be turned: 1 (as it is) to 8; 1 where it does not say.

    Tag 0x0112 of the first image file directory (CIPA DC-008, Exif 2.32, sections 4.6.2 and 4.6.4).
    Nothing in TensorFlow or tfbp applies it.
    """
    for mark in _MARKS:
        start = content.find(mark) + len(mark)
        order = _BYTE_ORDERS.get(content[start : start + 4])
        if order and start >= len(mark):
            return _tag(content[start : start + 2**16], order)
    return 1


def _tag(tiff: bytes, order: str) -> int:
    try:
        (directory,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, directory)
        for number in range(count):
            entry = struct.unpack_from(order + "HHIH", tiff, directory + 2 + 12 * number)
            if entry[:2] == (_ORIENTATION, _SHORT):
                return entry[3] if 1 <= entry[3] <= 8 else 1
    except struct.error:  # It ends too early: then it does not say.
        pass
    return 1
