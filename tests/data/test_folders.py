import os

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tfbp.data.folders import image_folder
from tfbp.errors import UserError


def write_folder(root, classes=("ant", "bee", "cat"), count=8, start=0):
    """Writes `count` different 6×6 images into a folder for each class."""
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for number in range(start, start + count):
            value = np.random.default_rng([label, number]).integers(0, 256, (6, 6, 3), np.uint8)
            Image.fromarray(value).save(root / name / f"{number:02d}.png")
    return root


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


def test_a_name_that_is_no_text_is_read_and_shown(tmp_path):
    write_folder(tmp_path)
    odd = os.fsencode(tmp_path / "ant") + b"/0\xff.png"
    os.rename(tmp_path / "ant" / "00.png", odd)
    splits = image_folder(tmp_path, size=6, validation=0, test=0)
    (index,) = [row for row in range(24) if "xff" in splits.train.name(row)]
    assert splits.train.name(index) == "ant/0\\xff.png"
    (image,), _ = splits.train.read([index])
    with open(odd, "rb") as file:
        np.testing.assert_array_equal(image, tf.io.decode_image(file.read()))


def test_a_part_that_is_left_without_images_is_refused(tmp_path):
    write_folder(tmp_path / "train", count=67)
    write_folder(tmp_path / "test", classes=("ant", "bee", "cat"), count=1)
    for file in (tmp_path / "test").rglob("*.png"):
        file.write_bytes(b"")
    with pytest.raises(UserError, match="leaves out 1 % of all at most"):
        image_folder(tmp_path, size=6, on_bad_example="skip")
    write_folder(tmp_path / "train" / "more", classes=("ant", "bee", "cat"), count=34, start=100)
    for name in ("ant", "bee", "cat"):
        os.rename(tmp_path / "train" / "more" / name, tmp_path / "train" / name / "more")
    os.rmdir(tmp_path / "train" / "more")
    with pytest.raises(UserError, match="must hold whole images in `test`"):
        image_folder(tmp_path, size=6, on_bad_example="skip")


@pytest.mark.parametrize("size", [(16, 32), [16], 16.0, "16", True])
def test_a_size_that_is_no_single_whole_number_is_refused_in_words(tmp_path, size):
    with pytest.raises(UserError, match="`size` must be one whole number, the edge of square"):
        image_folder(tmp_path, size=size)
