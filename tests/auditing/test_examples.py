import keras
import numpy as np
import pytest
import tensorflow as tf

from tfbp import (
    Classification,
    LanguageModel,
    MultiLabel,
    Regression,
    Splits,
    Vocabulary,
    image_folder,
)
from tfbp.auditing import examples
from tfbp.data import text
from tfbp.data.examples import Examples

NAMES = ("ant", "bee", "cat")
GENERATOR = np.random.default_rng(0)
IMAGES = GENERATOR.integers(0, 256, (30, 8, 8, 3)).astype(np.uint8)
VECTORS = GENERATOR.normal(size=(30, 4)).astype(np.float32)
LABELS = np.arange(30) % 3


def taken(x, rows, y=LABELS):
    return Examples.from_arrays(x[rows], y[rows], name=lambda index: f"example {rows[index]}")


def found(train, validation=None, test=None, task=None):
    splits = Splits(train, validation, test, classes=NAMES)
    return list(examples.findings(splits, task or Classification(NAMES)))


@pytest.mark.parametrize("x", [IMAGES, VECTORS], ids=["images", "vectors"])
def test_splits_without_a_fault_pass(x):
    assert (
        list(examples.findings(Splits.from_arrays(x, LABELS), Classification(("0", "1", "2"))))
        == []
    )
    assert found(taken(x, range(18)), taken(x, range(18, 24)), taken(x, range(24, 30))) == []


@pytest.mark.parametrize("x", [IMAGES, VECTORS], ids=["images", "vectors"])
def test_an_example_in_two_splits_is_an_error_that_names_it(x):
    (finding,) = found(taken(x, range(18)), taken(x, range(17, 24)))
    assert (finding.id, finding.warning) == ("split-overlap", False)
    assert "1 of the 7 examples of `validation` are in `train` too" in finding.message
    assert "example 17 (as example 17)" in finding.message


def test_a_validation_set_among_the_training_data_is_an_error():
    train = taken(IMAGES, range(30))
    (finding,) = found(train, taken(IMAGES, range(12)))
    assert "12 of the 12 examples of `validation` are in `train` too" in finding.message
    assert "and 8 more" in finding.message


def test_each_pair_of_splits_is_compared():
    ids = [
        (finding.id, finding.message.split(" too")[0].split("of `")[1])
        for finding in found(
            taken(VECTORS, range(18)), taken(VECTORS, range(15, 21)), taken(VECTORS, range(20, 26))
        )
    ]
    assert ids == [
        ("split-overlap", "validation` are in `train`"),
        ("split-overlap", "test` are in `validation`"),
    ]


def test_the_same_image_under_another_label_is_an_error_and_the_same_row_a_warning():
    other = (LABELS + 1) % 3
    for x, warning in ((IMAGES, False), (VECTORS, True)):
        validation = taken(x, range(17, 26), other)
        (finding,) = found(taken(x, range(18)), validation)
        assert (finding.id, finding.warning) == ("split-overlap", warning)
        assert "example 17 (as example 17)" in finding.message
        assert ("labels contradict" in finding.message) == warning


def test_equal_rows_with_contrary_labels_are_a_warning_and_with_other_values_none():
    x, y = np.concatenate([VECTORS[:18], VECTORS[4:6]]), np.append(LABELS[:18], [0, 1])
    (finding,) = found(Examples.from_arrays(x, y))
    assert (finding.id, finding.warning) == ("duplicates", True)
    assert "2 of the 20 examples of `train` are equal to others" in finding.message
    assert "row 18 (as row 4), row 19 (as row 5)" in finding.message
    assert not found(Examples.from_arrays(x, np.arange(20.0)), task=Regression())


def test_a_class_whose_examples_weigh_nothing_is_missing():
    weights = np.where(LABELS == 1, 0.0, 2.0)
    (finding,) = found(Examples.from_arrays(VECTORS, LABELS, weights=weights))
    assert (finding.id, finding.warning) == ("class-missing", False)
    assert "no example of 'bee' with a weight above 0" in finding.message
    rows = np.eye(3, dtype=np.float32)[LABELS]
    rows[::6, 1] = 1
    weights = rows[:, 1] == 0
    train = Examples.from_arrays(VECTORS, rows, weights=weights.astype(float))
    (finding,) = found(train, task=MultiLabel(NAMES))
    assert "no example of `train` has 'bee'" in finding.message


def test_files_in_two_folders_are_named(tmp_path):
    for part, count in (("train", 4), ("test", 2)):
        for label, name in enumerate(("cat", "dog")):
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                shift = 2 * (part == "test")  # the first test image of each class is its third
                image = IMAGES[label * 10 + shift + number * (1 + shift * 2)]
                (folder / f"{number}.png").write_bytes(tf.io.encode_png(image).numpy())
    splits = image_folder(tmp_path, size=8, validation=0)
    (finding,) = examples.findings(splits, Classification(splits.classes))
    assert "2 of the 4 examples of `test`" in finding.message
    assert "test/cat/0.png (as train/cat/2.png)" in finding.message


def test_copies_inside_a_split_are_a_warning_that_names_them():
    rows = [*range(18), 4, 4, 9]
    (finding,) = found(taken(IMAGES, rows))
    assert (finding.id, finding.warning) == ("duplicates", True)
    assert "3 of the 21 examples of `train` are copies" in finding.message
    assert "example 9 (as example 9)" in finding.message
    assert "labels differ" not in finding.message


def test_copies_with_contrary_labels_are_pointed_out():
    x, y = np.concatenate([IMAGES[:18], IMAGES[:1]]), np.append(LABELS[:18], 2)
    (finding,) = found(Examples.from_arrays(x, y))
    assert "Their labels differ at row 18: only one can be right" in finding.message


def test_a_class_without_training_examples_is_an_error():
    rows = [row for row in range(30) if LABELS[row] != 1]
    (finding,) = found(taken(IMAGES, rows))
    assert (finding.id, finding.warning) == ("class-missing", False)
    assert "`train` has no example of 'bee'" in finding.message


def test_a_class_without_test_examples_is_a_warning():
    (finding,) = found(taken(IMAGES, range(18)), test=taken(IMAGES, [18, 19]))
    assert (finding.id, finding.warning) == ("class-missing", True)
    assert "`test` has no example of 'cat'" in finding.message


def test_a_label_that_no_example_or_every_example_has_is_told():
    rows = np.stack([LABELS == 0, LABELS == 1, np.arange(30) < 0], axis=1).astype(np.float32)
    rows[18:, 0] = 1
    train, test = taken(IMAGES, range(18), rows), taken(IMAGES, range(18, 30), rows)
    missing, empty, always = found(train, test=test, task=MultiLabel(NAMES))
    assert (missing.id, missing.warning) == ("class-missing", False)
    assert "no example of `train` has 'cat': it cannot be learnt" in missing.message
    assert "no example of `test` has 'cat'" in empty.message and empty.warning
    assert "no example of `test` lacks 'ant'" in always.message and always.warning


def imbalanced(few, many):
    labels = np.repeat([0, 1, 2], [many, few, many])
    return Examples.from_arrays(np.arange(len(labels), dtype=np.float32), labels)


@pytest.mark.parametrize(("few", "many", "count"), [(2, 20, 0), (2, 21, 1), (1, 11, 1)])
def test_imbalance_beyond_ten_to_one_is_a_warning(few, many, count):
    findings = found(imbalanced(few, many))
    assert [(finding.id, finding.warning) for finding in findings] == [("imbalance", True)] * count


def test_the_weights_that_are_named_are_those_that_balanced_applies():
    train = imbalanced(4, 48)
    (finding,) = found(train)
    # n / (classes · count) = 100 / (3 · 48) and 100 / (3 · 4)
    assert "ant: 0.694, bee: 8.33, cat: 0.694" in finding.message
    assert "48 examples of 'ant' and 4 of 'bee'" in finding.message
    mended = Classification(NAMES, class_weights="balanced")
    np.testing.assert_allclose(mended.class_weights_for(train), [100 / 144, 100 / 12, 100 / 144])
    assert found(train, task=mended) == []


def test_values_to_predict_have_no_classes():
    train = Examples.from_arrays(VECTORS, VECTORS[:, 0])
    assert list(examples.findings(Splits(train), Regression())) == []


LINES = "to be or not to be that is the question whether it is nobler in the mind "


def windows(content, vocabulary):
    return text.windows(content, vocabulary, steps=4)


def test_a_text_may_repeat_itself_but_no_split_is_the_text_of_another():
    vocabulary = Vocabulary.from_text(LINES, "word", 40)
    task = LanguageModel(vocabulary)
    train = windows(LINES * 3 + "and so on and so forth " * 20, vocabulary)
    other = windows("the question is nobler than the mind to be or not " * 6, vocabulary)
    assert list(examples.findings(Splits(train, other), task)) == []
    part = windows("and so on and so forth " * 5, vocabulary)
    (finding,) = examples.findings(Splits(train, part), task)
    assert (finding.id, finding.warning) == ("split-overlap", True)
    (finding,) = examples.findings(Splits(train, train), task)
    assert (finding.id, finding.warning) == ("split-overlap", False)


def test_labels_below_zero_are_left_to_the_task():
    train = Examples.from_arrays(VECTORS, np.where(LABELS == 2, -1, LABELS))
    assert [finding.id for finding in found(train)] == ["class-missing"]
    x = keras.Input((4,))
    with pytest.raises(ValueError, match="`labels` must be from 0 to 2"):
        Classification(NAMES).check(keras.Model(x, keras.layers.Dense(3)(x)), train)
