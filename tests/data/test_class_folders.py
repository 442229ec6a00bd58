import os

import pytest

from tfbp.data.class_folders import Tree, part_of
from tfbp.errors import UserError


def write(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(path)


def listed(root, classes=None):
    """Returns {part/class: names of its files}."""
    tree = Tree(root, classes)
    result = {}
    for part, label, file in tree.files():
        result.setdefault(f"{part}/{tree.classes[label]}", []).append(os.path.relpath(file, root))
    return result


@pytest.fixture
def warnings(monkeypatch):
    """Returns the lines that are logged as warnings."""
    lines = []
    monkeypatch.setattr("absl.logging.warning", lambda text, *values: lines.append(text % values))
    return lines


@pytest.mark.parametrize(
    ("name", "part"),
    [
        *(
            ("Train", "train"),
            ("TRAINING", "train"),
            ("val", "validation"),
            ("Valid", "validation"),
        ),
        *(("validation", "validation"), ("DEV", "validation"), ("eval", "validation")),
        *(("Test", "test"), ("testing", "test"), ("trains", None), ("cat", None), ("2019", None)),
    ],
)
def test_parts_are_known_in_any_case_and_by_their_common_names(name, part):
    assert part_of(name) == part


@pytest.mark.parametrize(
    "names",
    [
        ("train", "val"),
        ("Training", "Testing"),
        ("TRAIN", "dev", "Test"),
        ("train", "valid", "test"),
    ],
)
def test_folders_called_like_splits_are_splits(tmp_path, names):
    write(tmp_path, *(f"{name}/{kind}/1.png" for name in names for kind in ("ash", "oak")))
    assert listed(tmp_path) == {
        f"{part_of(name)}/{kind}": [f"{name}/{kind}/1.png"]
        for name in names
        for kind in ("ash", "oak")
    }


def test_two_folders_for_one_split_are_refused(tmp_path):
    write(tmp_path, *(f"{name}/{kind}/1.png" for name in ("train", "val", "dev") for kind in "ab"))
    with pytest.raises(UserError, match=r"one folder for `validation`. Received: \['dev', 'val'\]"):
        Tree(tmp_path, None)


def test_splits_without_classes_are_not_taken_for_classes(tmp_path):
    write(tmp_path, "Train/1.png", "Test/2.png", "Val/3.png")
    with pytest.raises(UserError, match="'Test', 'Train', 'Val', which are names of splits"):
        Tree(tmp_path, None)
    assert set(listed(tmp_path, ("Train", "Test"))) == {"train/Train", "train/Test"}


@pytest.mark.parametrize("kinds", [("ash", "oak"), ("ash", "elm", "oak")])
@pytest.mark.parametrize("above", ["", "train/"])
def test_years_are_not_taken_for_classes(tmp_path, kinds, above):
    write(tmp_path, *(f"{above}{year}/{k}/1.png" for year in (2021, 2022, 2023) for k in kinds))
    with pytest.raises(UserError, match="there are two readings") as error:
        Tree(tmp_path, None)
    assert "the classes are '2021', '2022', '2023'" in str(error.value)
    assert f"the classes are {', '.join(map(repr, kinds))}" in str(error.value)
    assert len(listed(tmp_path, ("2021", "2022", "2023"))) == 3


def test_sites_that_lack_a_class_are_seen_too(tmp_path):
    write(tmp_path, "Bern/ash/1", "Bern/oak/1", "Rome/oak/1", "Oslo/ash/1", "Oslo/elm/1")
    with pytest.raises(UserError, match="there are two readings"):
        Tree(tmp_path, None)


@pytest.mark.parametrize(
    "paths",
    [
        # one class holds a file itself
        ("ash/2021/1", "ash/2022/1", "oak/2021/1", "oak/2022/1", "oak/cover"),
        # what lies below the classes has other names in each
        ("ash/a/1", "ash/b/1", "oak/c/1", "oak/d/1"),
        # no two classes could be meant
        ("ash/raw/1", "oak/raw/1"),
    ],
)
def test_folders_below_classes_are_part_of_them(tmp_path, paths):
    write(tmp_path, *paths)
    assert set(listed(tmp_path)) == {"train/ash", "train/oak"}


def test_a_folder_too_many_around_the_classes_is_named(tmp_path):
    write(tmp_path, "data/ash/1", "data/oak/1")
    with pytest.raises(UserError, match=r"Did you mean '.*data'\?"):
        Tree(tmp_path, None)


def test_links_are_followed_once_and_never_in_circles(tmp_path, warnings):
    write(tmp_path, "disk/a.png", "disk/deep/b.png", "data/ash/1.png", "data/oak/2.png")
    data = tmp_path / "data"
    (data / "ash" / "more").symlink_to(tmp_path / "disk")
    (data / "ash" / "again").symlink_to(tmp_path / "disk" / "deep")
    (data / "ash" / "up").symlink_to(data)
    (data / "ash" / "itself").symlink_to(data / "ash")
    (tmp_path / "disk" / "root").symlink_to("/")
    (data / "oak" / "one.png").symlink_to(tmp_path / "disk" / "a.png")
    files = listed(data)
    assert len(files["train/ash"]) == 3
    assert {os.path.basename(file) for file in files["train/ash"]} == {"1.png", "a.png", "b.png"}
    assert [os.path.basename(file) for file in files["train/oak"]] == ["2.png", "one.png"]
    assert warnings == [f"Passed over in {data}: 4 links to folders that are read elsewhere."]


def test_one_rule_at_every_level_says_what_is_passed_over(tmp_path, warnings):
    write(tmp_path, "train/ash/1", "train/oak/1", "train/oak/deep/2")
    for level in ("", "train/", "train/oak/", "train/oak/deep/"):
        write(tmp_path, f"{level}.DS_Store", f"{level}.cache/x", f"{level}__MACOSX/._1")
        write(tmp_path, f"{level}Thumbs.db")
    write(tmp_path, "train/readme.txt", "labels.csv")
    os.mkfifo(tmp_path / "train" / "ash" / "pipe")
    files = listed(tmp_path)
    assert files == {
        "train/ash": ["train/ash/1"],
        "train/oak": ["train/oak/1", "train/oak/deep/2"],
    }
    (line,) = warnings
    assert line == (
        f"Passed over in {tmp_path}: 2 files beside the class folders, 4 hidden files, "
        "4 hidden folders, 1 neither files nor folders, 4 system files, 4 system folders."
    )


def test_nothing_is_said_where_nothing_is_passed_over(tmp_path, warnings):
    write(tmp_path, "ash/1", "oak/1")
    listed(tmp_path)
    assert warnings == []


def test_a_class_that_utf8_cannot_hold_is_refused_before_any_image_is_read(tmp_path):
    write(tmp_path, "ash/1")
    os.mkdir(os.fsencode(tmp_path) + b"/caf\xe9")
    with pytest.raises(UserError, match="`classes` must be text that UTF-8 can hold"):
        Tree(tmp_path, None)
