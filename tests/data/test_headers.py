import io

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tfbp.data import headers, images


def pixels(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def encoded(kind, image, **settings):
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


def file(kind, height=5, width=7, mode="RGB"):
    return encoded(kind, Image.fromarray(pixels(height, width)).convert(mode))


def empty(kind, height, width):
    return encoded(kind, Image.new("L", (width, height)))


def animation(height=20, width=30, frames=4):
    first, *others = [Image.fromarray(pixels(height, width, seed)) for seed in range(frames)]
    return encoded("GIF", first, save_all=True, append_images=others, loop=0, comment=b"c" * 700)


@tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
def decode_each(contents):
    return images.decode_each(contents, 6, 9, 3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP"])
@pytest.mark.parametrize("size", [(1, 1), (3, 400), (300, 2)])
def test_the_size_is_that_of_the_image(kind, size):
    content, found = headers.read(file(kind, *size))
    assert found.numpy().tolist() == list(size)
    decoded = tf.io.decode_image(content, expand_animations=False)
    assert decoded.shape[:2] == size


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_the_modes_of_png_are_read_alike(mode):
    image = Image.fromarray(pixels(5, 7)).convert("L" if mode == "I;16" else mode)
    content = encoded("PNG", image.convert("I").convert(mode) if mode == "I;16" else image)
    assert headers.read(content)[1].numpy().tolist() == [5, 7]
    (decoded,), (good,) = decode_each([content])
    assert good
    np.testing.assert_array_equal(decoded, images.resize(tf.io.decode_image(content), 6, 9, 3))


def test_a_bitmap_may_have_its_rows_downwards():
    content = bytearray(file("BMP", 5, 7))
    content[22:26] = (-5).to_bytes(4, "little", signed=True)
    assert headers.read(bytes(content))[1].numpy().tolist() == [5, 7]


def test_of_an_animation_the_first_frame_is_left():
    whole = animation()
    cut, size = headers.read(whole)
    assert size.numpy().tolist() == [20, 30]
    assert headers.first_frame(whole) == cut
    assert len(cut.numpy()) < len(whole) / 2
    with Image.open(io.BytesIO(whole)) as theirs, Image.open(io.BytesIO(cut.numpy())) as ours:
        assert (theirs.n_frames, ours.n_frames) == (4, 1)
        expected = np.array(theirs.convert("RGB"))
    np.testing.assert_array_equal(tf.io.decode_image(cut, expand_animations=False), expected)


def test_files_of_any_size_are_decoded_side_by_side_and_bad_ones_spoil_none():
    good = [
        file(kind, *size)
        for kind, size in zip(
            ("JPEG", "PNG", "GIF", "BMP", "PNG"),
            ((6, 9), (30, 20), (2, 3), (6, 9), (5, 5)),
            strict=True,
        )
    ]
    bad = [
        b"",
        b"no image",
        b"GIF89a",
        b"BM",
        good[0][:40],
        good[1][:-30],
        good[2][:20],
        good[3][:30],
        file("WEBP"),
        empty("PNG", 6000, 6000),
    ]
    mixed = [content for pair in zip(bad, good * 2, strict=True) for content in pair]
    decoded, marks = decode_each(mixed)
    assert marks.numpy().tolist() == [False, True] * 10
    assert not decoded.numpy()[::2].any()
    for content, image in zip(good * 2, decoded[1::2], strict=True):
        np.testing.assert_array_equal(image, decode_each([content])[0][0])
    np.testing.assert_array_equal(decoded[3], images.resize(pixels(30, 20), 6, 9, 3))


def test_a_batch_may_be_empty_and_may_be_all_bad():
    decoded, good = decode_each(tf.constant([], tf.string))
    assert (decoded.shape, good.shape) == ((0, 6, 9, 3), (0,))
    assert decode_each([b"", b"bad"])[1].numpy().tolist() == [False, False]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP"])
@pytest.mark.parametrize("size", [(2, 4097), (4097, 2)])
def test_an_image_that_is_too_large_is_refused_by_its_header(kind, size, monkeypatch):
    contents = [empty(kind, *size), empty(kind, min(size), min(size))]
    assert decode_each(contents)[1].numpy().tolist() == [False, True]

    def decoder(content, **_):
        raise AssertionError("it was decoded")

    contents = [empty(kind, *size)]
    monkeypatch.setattr(tf.io, "decode_image", decoder)
    with pytest.raises(tf.errors.InvalidArgumentError):
        images.examine(contents[0], 4096)


def test_the_largest_size_is_allowed_and_may_be_another():
    assert decode_each([empty("PNG", 4096, 1)])[1].numpy().all()
    contents = tf.constant([file("PNG", 8, 8), file("PNG", 8, 9)])
    good = images.decode_each(contents, 6, 9, 3, largest=8)[1]
    assert good.numpy().tolist() == [True, False]


def test_a_frame_larger_than_its_screen_is_seen():
    content = bytearray(animation(20, 30, frames=1))
    content[6:10] = bytes([1, 0, 1, 0])  # the screen is said to be of 1 by 1 pixel
    assert headers.read(bytes(content))[1].numpy().tolist() == [20, 30]


def test_a_gif_of_many_tiny_blocks_is_no_burden():
    whole = animation()
    table = 13 + 3 * 2 ** (whole[10] % 8 + 1)
    comment = b"!\xfe" + b"\x01c" * 100_000 + b"\0"
    assert decode_each([whole[:table] + comment + whole[table:]])[1].numpy().all()
    extensions = b"!\xfe\0" * 100_000
    assert not decode_each([whole[:table] + extensions + whole[table:]])[1].numpy().any()


FILES = [file("JPEG"), file("PNG"), file("GIF"), file("BMP"), animation(5, 7)]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_whatever_comes_the_neighbours_are_answered(data):
    content = bytearray(data.draw(st.sampled_from(FILES)))
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, min(len(content) - 1, 60)))] = data.draw(
            st.integers(0, 255)
        )
    content = bytes(content[: data.draw(st.integers(0, len(content)))])
    decoded, good = decode_each([FILES[1], content, FILES[1]])
    assert good.numpy()[[0, 2]].all()
    np.testing.assert_array_equal(decoded[0], images.resize(pixels(5, 7), 6, 9, 3))
    np.testing.assert_array_equal(decoded[2], decoded[0])
    assert good.numpy()[1] or not decoded.numpy()[1].any()
