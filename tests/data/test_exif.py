import io

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from tfbp.data import exif


def encoded(kind, orientation=None, order="<", **others):
    tags = Image.Exif()
    tags.endian = order
    if orientation is not None:
        tags[0x0112] = orientation
    for name, value in others.items():
        tags[int(name.removeprefix("tag_"))] = value
    file = io.BytesIO()
    Image.new("RGB", (3, 2)).save(file, kind, exif=tags)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_is_the_one_that_pillow_reads(kind, order, orientation):
    content = encoded(kind, orientation, order, tag_271="a camera", tag_305="a program")
    with Image.open(io.BytesIO(content)) as image:
        assert image.getexif()[0x0112] == orientation
    assert exif.orientation(content) == orientation


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_file_that_says_none_is_as_it_is(kind):
    assert exif.orientation(encoded(kind)) == 1
    assert exif.orientation(encoded(kind, tag_271="a camera")) == 1
    assert exif.orientation(encoded(kind, 9)) == 1


WHOLE = encoded("JPEG", 6, ">")


@given(st.binary(max_size=40), st.integers(0, len(WHOLE)))
@example(b"", 0)
@example(b"MM\0*", 0)
def test_whatever_stands_there_is_no_error(tail, length):
    assert exif.orientation(WHOLE[:length] + tail) in range(1, 9)
    assert exif.orientation(b"Exif\0\0" + tail) in range(1, 9)
