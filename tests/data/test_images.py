import numpy as np
import pytest
import tensorflow as tf

from tfbp.data.images import decode, image_folder, resize
from tfbp.errors import UserError

Image = pytest.importorskip("PIL.Image")


def write_folder(root, classes=("ant", "bee", "cat"), count=8, start=0):
    """Writes `count` different 6×6 images into a folder for each class."""
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for number in range(start, start + count):
            value = np.random.default_rng([label, number]).integers(0, 256, (6, 6, 3), np.uint8)
            Image.fromarray(value).save(root / name / f"{number:02d}.png")
    return root


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
    image = tf.function(decode)(tf.constant(path.read_bytes()), 12, channels)
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


def test_a_folder_of_classes_is_split_and_read_by_index(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "ant" / ".hidden").write_text("passed over")
    splits = image_folder(tmp_path, size=6, validation=0.25, test=0.25)
    assert splits.classes == ("ant", "bee", "cat")
    assert [part.size for part in (splits.train, splits.validation, splits.test)] == [12, 6, 6]
    images, labels = tf.function(splits.test.read)(tf.range(6))
    for index in range(6):
        name = splits.test.name(index)
        assert name.startswith(splits.classes[int(labels[index])])
        assert np.array_equal(images[index], np.asarray(Image.open(tmp_path / name)))


def test_classes_are_chosen_and_ordered_by_the_caller(tmp_path):
    write_folder(tmp_path)
    splits = image_folder(tmp_path, size=4, channels=1, classes=["cat", "ant"], per_class=2)
    assert splits.classes == ("cat", "ant")
    assert splits.train.labels.tolist() == [0, 0, 1, 1]
    assert splits.train.name(0).startswith("cat")
    assert splits.train.spec[0].shape == (4, 4, 1)


def test_given_parts_are_kept_and_missing_ones_cut_from_train(tmp_path):
    write_folder(tmp_path / "train")
    write_folder(tmp_path / "test", count=2, start=50)
    splits = image_folder(tmp_path, size=6)
    assert [part.size for part in (splits.train, splits.validation, splits.test)] == [21, 3, 6]
    assert {splits.test.name(index).split("/")[0] for index in range(6)} == {"test"}


def test_a_class_may_be_called_train(tmp_path):
    write_folder(tmp_path, classes=("car", "train"))
    assert image_folder(tmp_path, size=6).classes == ("car", "train")


def test_equal_files_are_never_in_two_splits(tmp_path):
    write_folder(tmp_path)
    for number in range(8):
        content = (tmp_path / "ant" / f"{number:02d}.png").read_bytes()
        (tmp_path / "bee" / f"copy{number}.png").write_bytes(content)
    splits = image_folder(tmp_path, size=6, validation=0.3, test=0.3)
    held = [set(part.hashes) for part in (splits.train, splits.validation, splits.test)]
    assert not held[0] & held[1] | held[0] & held[2] | held[1] & held[2]


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "it is empty"), (b"no image", "it is not a whole"), ("truncated", "it is not a whole")],
)
def test_unreadable_files_are_named_and_counted(tmp_path, content, reason):
    write_folder(tmp_path)
    whole = (tmp_path / "bee" / "03.png").read_bytes()
    for number in (3, 4, 5):
        bad = whole[: len(whole) // 2] if content == "truncated" else content
        (tmp_path / "bee" / f"{number:02d}.png").write_bytes(bad)
    with pytest.raises(UserError, match=f"03.png cannot be read: {reason}") as caught:
        image_folder(tmp_path, size=6)
    assert "bee" in str(caught.value)
    assert "2 more" in str(caught.value)


def without(root, name):
    for file in (root / name).iterdir():
        file.unlink()


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        (lambda root: without(root, "bee"), {}, "must each hold an image"),
        (lambda root: None, {"classes": ["ant", "bees"]}, "Did you mean 'bee'"),
        (lambda root: None, {"classes": ["ant"]}, "two or more"),
        (lambda root: None, {"classes": ["ant", "ant"]}, "differ from each other"),
        (lambda root: None, {"size": 0}, "`size` must be at least 1"),
        (lambda root: None, {"channels": 4}, "`channels` must be 1"),
        (lambda root: None, {"validation": 1.5}, "`validation` must be a fraction"),
        (lambda root: None, {"per_class": 0}, "`per_class` must be at least 1"),
        (lambda root: write_folder(root / "train"), {}, "no other folder beside `train`"),
    ],
)
def test_folders_that_cannot_be_learnt_from_are_refused(tmp_path, change, settings, message):
    write_folder(tmp_path)
    change(tmp_path)
    with pytest.raises(UserError, match=message):
        image_folder(tmp_path, **{"size": 6, **settings})


@pytest.mark.parametrize(
    ("classes", "message"), [(["ant"], "must be folders in"), (["ant", "bee", "cow"], "the same")]
)
def test_every_part_has_the_same_classes(tmp_path, classes, message):
    write_folder(tmp_path / "train", classes=("ant", "bee"))
    write_folder(tmp_path / "test", classes=classes)
    with pytest.raises(UserError, match=message):
        image_folder(tmp_path, size=6)


def test_a_missing_folder_and_one_without_classes_are_refused(tmp_path):
    with pytest.raises(UserError, match="must be a folder that exists"):
        image_folder(tmp_path / "nowhere", size=6)
    with pytest.raises(UserError, match="a folder for each class"):
        image_folder(tmp_path, size=6)
