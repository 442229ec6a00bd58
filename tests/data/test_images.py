import io

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tfbp.data import headers, images
from tfbp.data.images import Encoding, decode, decode_each, resize

in_graph = tf.function(decode)


def smooth(mode="RGB", size=(12, 12)):
    ramp = np.linspace(20, 220, size[0])
    grid = np.stack([np.add.outer(ramp, ramp) / 2, np.tile(ramp, (size[1], 1))], axis=-1)
    pixels = np.concatenate([grid, grid[::-1, :, :1]], axis=-1).astype(np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.mark.parametrize(
    ("suffix", "mode", "tolerance"),
    [
        ("png", "RGB", 0),
        ("png", "L", 0),
        ("png", "LA", 0),
        ("png", "RGBA", 0),
        ("png", "P", 0),
        ("png", "1", 0),
        ("bmp", "RGB", 0),
        ("bmp", "L", 0),
        ("bmp", "P", 0),
        ("bmp", "RGBA", 0),
        ("gif", "P", 0),
        ("jpeg", "RGB", 8),
        ("jpeg", "L", 8),
        ("jpeg", "CMYK", 12),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_formats_and_modes_are_decoded_like_pillow_does(
    tmp_path, suffix, mode, tolerance, channels
):
    path = tmp_path / f"image.{suffix}"
    smooth(mode).save(path, **({"quality": 95} if suffix == "jpeg" else {}))
    image = in_graph(tf.constant(path.read_bytes()), 12, channels)
    expected = np.asarray(Image.open(path).convert("RGB" if channels == 3 else "L"), np.float32)
    assert image.dtype == tf.float32
    # Grey: the two weigh red, green and blue alike, and round differently.
    limit = tolerance + (channels == 1)
    assert np.abs(image - expected.reshape(12, 12, channels)).max() <= limit


def test_of_an_animation_the_first_frame_is_taken(tmp_path):
    frames = [Image.new("L", (4, 4), value) for value in (50, 200)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    image = decode(tf.constant((tmp_path / "a.gif").read_bytes()), 4, 3)
    assert np.allclose(image, 50)


@pytest.mark.parametrize("size", [5, 12, 30])
def test_resizing_is_bilinear_and_averages_where_an_image_shrinks(size):
    pixels = np.asarray(smooth("L"), np.float32)[..., np.newaxis]
    expected = Image.fromarray(pixels[..., 0]).resize((size, size), Image.Resampling.BILINEAR)
    assert np.abs(resize(pixels, size, size, 1)[..., 0] - np.asarray(expected)).max() < 1e-2
    batch = resize(np.stack([pixels, pixels]), size, size, 3)
    assert batch.shape == (2, size, size, 3)
    assert np.allclose(batch[1, ..., 2], expected, atol=1e-2)


def encoded(image, kind, **settings):
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


def noise(mode="RGB", size=(50, 70), seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    return Image.fromarray(pixels).convert(mode)


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


RARE = {
    "CMYK": encoded(noise("CMYK"), "JPEG"),
    "grey JPEG": encoded(noise("L"), "JPEG"),
    "progressive": encoded(noise(), "JPEG", progressive=True),
    "turned JPEG": encoded(noise(), "JPEG", exif=turned(6)),
    "turned PNG": encoded(noise(), "PNG", exif=turned(3)),
    "animated GIF": encoded(noise(), "GIF", save_all=True, append_images=[noise(seed=1)]),
    "interlaced GIF": encoded(noise(), "GIF", interlace=1),
    "animated PNG": encoded(noise(), "PNG", save_all=True, append_images=[noise(seed=1)]),
    "palette": encoded(noise("P"), "PNG"),
    "transparent palette": encoded(noise("P"), "PNG", transparency=7),
    "grey with alpha": encoded(noise("LA"), "PNG"),
    "black and white": encoded(noise("1"), "PNG"),
    "palette BMP": encoded(noise("P"), "BMP"),
    "few colours": encoded(noise().quantize(5), "BMP"),
    "16-bit colour": tf.io.encode_png(
        np.random.default_rng(0).integers(0, 2**16, (50, 70, 3), np.uint16)
    ).numpy(),
}


@tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
def served(contents):
    return decode_each(contents, 50, 70, 3)


@tf.function(input_signature=[tf.TensorSpec([], tf.string)])
def examine(content):
    return images.examine(content)[0]


def test_rare_formats_are_served_as_pillow_reads_them():
    answers, good = served(list(RARE.values()))
    assert good.numpy().all()
    for (name, content), answer in zip(RARE.items(), answers, strict=True):
        expected = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"), np.float32)
        limit = 12 if content.startswith(b"\xff\xd8") else 0  # JPEG decoders round differently
        assert np.abs(answer - expected).max() <= limit, name


def test_what_is_trained_on_is_what_an_export_sees():
    answers, _ = decode_each(tf.constant(list(RARE.values())), 50, 50, 3)
    for content, answer in zip(RARE.values(), answers, strict=True):
        np.testing.assert_array_equal(in_graph(tf.constant(content), 50, 3), answer)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", sorted(RARE))
def test_what_is_known_of_a_file_changes_no_pixel(name, channels):
    content = tf.constant(RARE[name])
    shape = tuple(examine(content).shape)
    formats = headers.formats([RARE[name]])
    for size in (20, 60):
        expected = in_graph(content, size, channels)
        for known in (shape, (None, None, shape[2])):
            answer = in_graph(content, size, channels, Encoding(formats, known))
            np.testing.assert_array_equal(answer, expected)


def test_an_image_of_another_shape_than_is_known_is_refused():
    encoding = Encoding(headers.formats([RARE["CMYK"]]), (50, 70, 1))
    with pytest.raises(tf.errors.InvalidArgumentError):
        in_graph(tf.constant(RARE["CMYK"]), 50, 3, encoding)


def test_an_image_that_has_its_size_becomes_floats_too():
    pixels = np.asarray(noise(), np.uint8)
    same = resize(pixels, *pixels.shape)
    assert same.dtype == tf.float32
    np.testing.assert_array_equal(same, pixels)


def test_of_16_bits_the_upper_8_are_taken():
    values = np.random.default_rng(0).integers(0, 2**16, (50, 70), np.uint16)
    answer, good = served([encoded(Image.fromarray(values), "PNG")])
    assert good.numpy().all()
    np.testing.assert_array_equal(answer[0, ..., 1], values // 256)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("part", [0.3, 0.6, 0.95])
def test_a_jpeg_that_was_cut_is_refused_with_an_end_marker_too(mode, part):
    whole = encoded(noise(mode), "JPEG")
    cut = whole[: int(part * len(whole))]
    # The decoder takes the second, and fills it with grey.
    assert tf.io.decode_image(cut + b"\xff\xd9").shape[:2] == (50, 70)
    assert served([cut, cut + b"\xff\xd9", whole])[1].numpy().tolist() == [False, False, True]


@pytest.mark.parametrize(
    "content",
    [
        encoded(Image.new("RGB", (40, 24), (128, 128, 128)), "JPEG"),
        encoded(Image.new("L", (40, 24), 128), "JPEG", progressive=True),
        encoded(Image.new("CMYK", (40, 24), (127, 127, 127, 127)), "JPEG"),
        encoded(Image.new("RGB", (3, 1), (128, 128, 128)), "JPEG"),
        # cameras write a second image behind the first
        encoded(Image.new("L", (40, 24), 128), "JPEG") + encoded(noise(), "JPEG") + b"more",
        encoded(Image.new("L", (40, 24), 128), "PNG"),
    ],
)
def test_a_grey_image_that_is_whole_is_not_refused(content):
    with Image.open(io.BytesIO(content)) as image:
        expected = np.asarray(image.convert("RGB"), int)
    assert np.abs(examine(content).numpy() - expected).max() <= 1


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(RARE)), st.floats(0, 1, exclude_max=True))
def test_what_is_cut_off_anywhere_is_whole_or_refused(name, part):
    content = RARE[name]
    try:
        image = examine(content[: int(part * len(content))])
    except tf.errors.OpError:
        return
    # Behind the first frame of an animation there is more to cut.
    np.testing.assert_array_equal(image, examine(content))


@pytest.mark.parametrize(
    "content", [b"\x89PNG\r\n\x1a\n", b"\x89PNG\r\n\x1a\n\xff\xfe", b"BM\xff\xfe"]
)
def test_a_header_that_is_cut_short_is_refused_in_words(content):
    with pytest.raises(tf.errors.InvalidArgumentError, match="neither JPEG, PNG, GIF nor BMP"):
        examine(content)


@pytest.mark.parametrize("end", range(26, 46))
def test_a_palette_that_is_cut_short_is_refused_without_the_bytes_of_the_file(end):
    with pytest.raises(tf.errors.InvalidArgumentError):
        examine(RARE["palette BMP"][:end])


def png_header(width, height):
    """Returns a PNG that says how large it is, and no more."""
    fields = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    return b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR" + fields + b"\x08\0\0\0\0"


@pytest.mark.parametrize("size", [(2**14, 2**13 + 1), (2**31, 1), (0, 5), (2**16, 2**16)])
def test_the_size_is_judged_before_anything_is_decoded(size, monkeypatch):
    monkeypatch.setattr(tf.io, "decode_image", lambda *_, **__: pytest.fail("it was decoded"))
    with pytest.raises(tf.errors.InvalidArgumentError):
        images.examine(tf.constant(png_header(*size)))
