import functools
import io
import logging
import re
import struct
import zlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tfbp.data import headers, image_files, images
from tfbp.data.folders import image_folder
from tfbp.errors import UserError


def encoded(kind, seed=0, mode="RGB", size=(6, 6), **settings):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, kind, **settings)
    return file.getvalue()


def write_folder(root, count=4, classes=("ant", "bee")):
    for label, name in enumerate(classes):
        (root / name).mkdir()
        for number in range(count):
            file = root / name / f"{number:03d}.png"
            file.write_bytes(encoded("PNG", label * count + number))
    return root


def png_chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width, height, rows=b"\0\0"):
    """Returns a grey PNG that says it is larger than its rows."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    body = png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + body


JPEG = encoded("JPEG", size=(40, 40))
WHY = {
    "empty": (b"", "it is empty"),
    "text": (b"not an image", "it is not a JPEG, PNG, GIF or BMP file"),
    "page": (b"\n<!DOCTYPE html><p>404", "it is an HTML page, not JPEG, PNG, GIF or BMP"),
    "webp": (encoded("WEBP"), "it is a WebP file, not JPEG, PNG, GIF or BMP"),
    "tiff": (encoded("TIFF"), "it is a TIFF file, not JPEG, PNG, GIF or BMP"),
    "avif": (b"\0\0\0\x20ftypavif\0\0\0\0", "it is a HEIF or AVIF file, not JPEG, PNG, GIF or BMP"),
    "jpeg": (JPEG[:-40], "it is truncated"),
    "marker": (JPEG[:-400] + b"\xff\xd9", "it is truncated: the rest of the image is missing"),
    "png": (encoded("PNG")[:-13], "it is truncated"),
    "gif": (encoded("GIF")[:-9], "it is truncated"),
    "bmp": (encoded("BMP")[:-1], "it is truncated"),
    "bits": (encoded("BMP", mode="1"), "it cannot be decoded: "),
    "damaged": (encoded("PNG").replace(b"IDAT", b"IDAX"), "it cannot be decoded: "),
    "bomb": (png(20_000, 20_000), "it is too large: more than 134,217,728 pixels"),
    "header": (b"GIF89a\1\0\1\0\0\0\0.;", "its header is broken"),
}


def test_all_bad_files_are_reported_with_their_reasons(tmp_path):
    write_folder(tmp_path)
    for name, (content, _) in WHY.items():
        (tmp_path / "bee" / f"{name}.jpg").write_bytes(content)
    (tmp_path / "ant" / "link.png").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError) as caught:
        image_folder(tmp_path, size=6)
    first, *lines = str(caught.value).splitlines()
    assert first == f"Files in {tmp_path} that are no whole images, 16 of 24:"
    said = dict(re.fullmatch(r" - (\S+): (.*)", line).groups() for line in lines[:16])
    assert said.pop("ant/link.png") == "it cannot be read: No such file or directory"
    for name, (_, why) in WHY.items():
        assert said[f"bee/{name}.jpg"].startswith(why)
    assert "on_bad_example=skip" in lines[16]


def test_of_very_many_bad_files_twenty_are_named(tmp_path):
    write_folder(tmp_path, count=15)
    for file in tmp_path.rglob("*.png"):
        file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(UserError) as caught:
        image_folder(tmp_path, size=6)
    lines = str(caught.value).splitlines()
    assert sum(line.startswith(" - ") for line in lines) == 20
    assert "   … and 10 more" in lines


@pytest.fixture
def warned(caplog):
    """Returns a function that loads a folder and returns its splits and the warnings."""

    def load(path, **settings):
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="absl"):
            splits = image_folder(path, size=6, **settings)
        return splits, [record.getMessage() for record in caplog.records]

    return load


def test_bad_files_are_skipped_the_same_ones_every_time(tmp_path, warned):
    write_folder(tmp_path, count=99)
    clean, said = warned(tmp_path)
    assert said == []
    (tmp_path / "bee" / "050a.png").write_bytes(encoded("PNG")[:50])
    (tmp_path / "ant" / "zero.png").write_bytes(b"")
    for _ in range(2):
        splits, (said,) = warned(tmp_path, on_bad_example="skip")
        assert "no whole images, 2 of 200:" in said and "They are left out" in said
        assert "ant/zero.png: it is empty" in said and "bee/050a.png: it is truncated" in said
        for name, part in splits.parts().items():
            assert part.fingerprint == clean.parts()[name].fingerprint
            names = {part.name(index) for index in range(part.size)}
            assert not names & {"bee/050a.png", "ant/zero.png"}


def test_more_than_one_percent_of_bad_files_are_an_error_in_any_case(tmp_path):
    write_folder(tmp_path, count=99)
    for number in range(2, 5):
        (tmp_path / "ant" / f"{number:03d}.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"(?s)3 of 198:.*leaves out 1 % of all at most"):
        image_folder(tmp_path, size=6, on_bad_example="skip")


def test_what_to_do_with_bad_files_is_fail_or_skip(tmp_path):
    write_folder(tmp_path)
    with pytest.raises(UserError, match=r"`on_bad_example` must be .* Did you mean 'skip'"):
        image_folder(tmp_path, size=6, on_bad_example="skipp")


def test_each_file_is_read_and_decoded_once(tmp_path, monkeypatch):
    write_folder(tmp_path, count=80)
    (tmp_path / "ant" / "bad.png").write_bytes(encoded("PNG")[:-13])
    done = {"read_file": [], "decode_image": []}

    def count(name, original):
        def counted(item, *args, **settings):
            def note(value):
                done[name].append(value)
                return value

            return original(tf.numpy_function(note, [item], tf.string), *args, **settings)

        return counted

    for name in done:
        monkeypatch.setattr(tf.io, name, count(name, getattr(tf.io, name)))
    # Traced anew, and with what counts.
    monkeypatch.setattr(image_files, "_examine", image_files._examine.__wrapped__)
    image_folder(tmp_path, size=6, on_bad_example="skip")
    for items in done.values():
        assert len(items) == len(set(items)) == 161


def write_files(root, contents):
    files = [root / f"{number:02d}" for number in range(len(contents))]
    for file, content in zip(files, contents, strict=True):
        file.write_bytes(content)
    return list(map(str, files))


@pytest.mark.parametrize(
    ("contents", "formats", "shape"),
    [
        ([encoded("JPEG", seed) for seed in range(3)], {headers.JPEG}, (6, 6, 3)),
        ([encoded("JPEG"), encoded("JPEG", mode="L")], {headers.JPEG}, (6, 6, None)),
        ([encoded("JPEG", mode="CMYK")], {headers.JPEG}, (6, 6, 3)),
        ([encoded("BMP", mode="P")], {headers.BMP}, (6, 6, 3)),
        ([encoded("PNG", mode="LA")], {headers.PNG}, (6, 6, 2)),
        (
            [encoded("GIF", size=(4, 9)), encoded("PNG", size=(4, 7))],
            {headers.GIF, headers.PNG},
            (4, None, 3),
        ),
    ],
)
def test_what_whole_files_share_is_known(tmp_path, contents, formats, shape):
    bad = [WHY["gif"][0], WHY["bits"][0]]
    files = write_files(tmp_path, contents * 200 + bad)
    hashes, encoding = image_files.check(files, tmp_path, "skip")
    assert np.flatnonzero(hashes == b"").tolist() == [len(files) - 2, len(files) - 1]
    assert encoding == images.Encoding(formats, shape)


SETS = {
    "JPEG": [encoded("JPEG", seed) for seed in range(4)],
    "grey JPEG": [encoded("JPEG", seed, "L") for seed in range(4)],
    "CMYK": [encoded("JPEG", seed, "CMYK") for seed in range(4)],
    "PNG": [encoded("PNG", seed) for seed in range(4)],
    "transparent PNG": [encoded("PNG", seed, "RGBA") for seed in range(4)],
    "GIF": [encoded("GIF", seed) for seed in range(4)],
    "palette BMP": [encoded("BMP", seed, "P") for seed in range(4)],
    "JPEG sizes": [encoded("JPEG", seed, size=(5 + seed, 9 - seed)) for seed in range(4)],
}
SETS["mixed"] = [contents[0] for contents in SETS.values()]


@functools.cache
def decoder_of_an_export(size, channels):
    """Returns what an export does with files; traced once for all tests."""
    files = tf.TensorSpec([None], tf.string)
    return tf.function(
        lambda contents: images.decode_each(contents, size, size, channels), input_signature=[files]
    )


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", sorted(SETS))
def test_any_set_of_files_is_read_as_an_export_decodes_them(tmp_path, name, channels):
    for label in ("ant", "bee"):
        (tmp_path / label).mkdir()
        write_files(tmp_path / label, SETS[name])
    for size in (5, 6):
        options = {"size": size, "channels": channels, "validation": 0, "test": 0}
        train = image_folder(tmp_path, **options).train
        answer, _ = tf.function(train.read)(tf.range(train.size))
        contents = [(tmp_path / train.name(row)).read_bytes() for row in range(train.size)]
        expected, good = decoder_of_an_export(size, channels)(tf.constant(contents))
        assert good.numpy().all()
        assert answer.dtype == tf.float32
        np.testing.assert_array_equal(answer, expected)


def operations(examples):
    graph = tf.function(examples.read).get_concrete_function(tf.TensorSpec([None], tf.int64)).graph
    functions = graph.as_graph_def().library.function
    return {node.op for function in functions for node in function.node_def}


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_files_of_the_wanted_size_are_decoded_and_no_more_is_asked(tmp_path, kind):
    write_folder(tmp_path)
    for file in tmp_path.rglob("*.png"):
        file.write_bytes(encoded(kind, int(file.stem)))
    asked = {"If", "StatelessIf", "Substr", "ResizeBilinear", "ScaleAndTranslate"}
    plain = operations(image_folder(tmp_path, size=6).train)
    assert {"ReadFile", "DecodeImage"} <= plain
    assert not plain & asked


@pytest.mark.parametrize("kind", ["GIF", "BMP"])
def test_one_file_of_a_format_that_needs_more_is_enough(tmp_path, kind):
    write_folder(tmp_path)
    assert "DecodeRaw" not in operations(image_folder(tmp_path, size=6).train)
    (tmp_path / "ant" / "more").write_bytes(encoded(kind))
    # A GIF would be decoded with all its frames, a palette to its numbers.
    assert "DecodeRaw" in operations(image_folder(tmp_path, size=6).train)


def test_a_file_that_changes_its_shape_after_the_check_is_refused(tmp_path):
    write_folder(tmp_path)
    train = image_folder(tmp_path, size=6, validation=0, test=0).train
    (tmp_path / train.name(3)).write_bytes(encoded("PNG", mode="L"))
    read = tf.function(train.read)
    read(tf.constant([0, 1, 2]))
    with pytest.raises(tf.errors.InvalidArgumentError):
        read(tf.constant([2, 3, 4]))


def test_an_exif_orientation_is_not_applied_and_counted_in_one_warning(tmp_path, warned):
    write_folder(tmp_path)
    exif = Image.Exif()
    for number, orientation in enumerate([1, 6, 6, 3]):
        exif[0x0112] = orientation
        file = tmp_path / "ant" / f"turned{number}.png"
        file.write_bytes(encoded("PNG", 100 + number, exif=exif))
    splits, (said,) = warned(tmp_path, validation=0, test=0)
    assert said.startswith(f"Image files in {tmp_path} with an EXIF orientation other than 1: 3.")
    rows = [row for row in range(12) if "turned" in splits.train.name(row)]
    images_read, _ = splits.train.read(rows)
    contents = [(tmp_path / splits.train.name(row)).read_bytes() for row in rows]
    served, good = images.decode_each(tf.constant(contents), 6, 6, 3)
    np.testing.assert_array_equal(images_read, served)
    assert good.numpy().all()
    for image, content in zip(images_read, contents, strict=True):
        np.testing.assert_array_equal(image, np.asarray(Image.open(io.BytesIO(content))))


def test_images_that_an_export_refuses_for_their_size_are_counted_in_a_warning(tmp_path, warned):
    write_folder(tmp_path)
    for number, size in enumerate([(4097, 1), (1, 4097), (4096, 1)]):
        (tmp_path / "bee" / f"long{number}.png").write_bytes(encoded("PNG", number, size=size))
    _, (said,) = warned(tmp_path)
    assert "wider than 4,096 pixels: 2." in said and "`largest_image`" in said
