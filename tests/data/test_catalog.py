import sys

import numpy as np
import pytest

from tfbp.data import catalog
from tfbp.errors import UserError


def test_digits_are_scaled_from_8_by_8():
    datasets = pytest.importorskip("sklearn.datasets")
    splits = catalog.load_data("digits?validation=0", seed=0, channels=1)
    images, labels = splits.train.read([0, 1])
    assert splits.description == "digits?validation=0"
    assert splits.classes == tuple("0123456789")
    assert splits.train.size + splits.test.size == 1797
    row = int(splits.train.name(1).removeprefix("row "))
    bunch = datasets.load_digits()
    assert np.allclose(images[1, ..., 0], bunch.images[row] * 255 / 16, atol=0.5)
    assert labels[1] == bunch.target[row]


def test_size_and_channels_are_those_asked_for():
    pytest.importorskip("sklearn")
    assert catalog.load_data("digits", seed=0, size=12).train.spec[0].shape == (12, 12, 3)
    assert catalog.load_data("digits?size=9", seed=0, size=12).test.spec[0].shape == (9, 9, 3)


def test_channels_out_of_range_are_refused():
    with pytest.raises(UserError, match="`channels` must be 1"):
        catalog.load_data("random", seed=0, channels=2)


def test_classes_and_labels_are_kept_as_asked():
    pytest.importorskip("sklearn")
    splits = catalog.load_data("digits?classes=7,3&per_class=5", seed=0)
    assert splits.classes == ("7", "3")
    assert splits.train.labels.tolist().count(0) == splits.train.labels.tolist().count(1) == 5
    assert 30 < splits.test.size < 40
    other = catalog.load_data("digits?classes=7,3&per_class=5", seed=1)
    assert set(other.train.hashes) != set(splits.train.hashes)


def test_glyphs_are_52_classes():
    pytest.importorskip("matplotlib")
    splits = catalog.load_data("glyphs?count=5&size=16", seed=0)
    assert len(splits.classes) == 52
    assert splits.train.spec[0].shape == (16, 16, 3)


def test_random_data_is_seeded_and_can_be_learnt():
    splits = catalog.load_data("random?shape=6,5,1&classes=3&count=90", seed=0, channels=1)
    again = catalog.load_data("random?shape=6,5,1&classes=3&count=90", seed=0, channels=1)
    assert splits.train.fingerprint == again.train.fingerprint
    assert splits.train.spec[0].shape == (6, 5, 1)
    x, y = splits.train.read(range(splits.train.size))
    means = np.stack([x.numpy()[y == label].mean(axis=0) for label in range(3)])
    held_out, truth = splits.test.read(range(splits.test.size))
    distances = np.square(held_out.numpy()[:, np.newaxis] - means).sum(axis=(2, 3, 4))
    assert np.mean(distances.argmin(axis=1) == truth) == 1.0


def test_random_vectors_have_the_features_asked_for():
    splits = catalog.load_data("random?shape=4&classes=2&count=20", seed=0, size=32)
    assert splits.train.spec[0].shape == (4,)


def test_lines_are_all_for_training():
    assert catalog.load_data("line", seed=0).train.size == 100
    assert catalog.load_data("proportional", seed=0).train.size == 3


def test_csv_targets_are_values_or_classes(tmp_path):
    path = tmp_path / "table.csv"
    rows = [f"{number},{number * 2},{'ab'[number % 2]},{number % 3}" for number in range(20)]
    path.write_text("\n".join(["x,price,kind,digit", *rows]))
    assert catalog.load_data(f"csv:{path}?target=kind&validation=0", seed=0).classes is not None
    path.write_text("\n".join(["x,price,digit", *(f"{n},{n * 2},{n % 3}" for n in range(20))]))
    values = catalog.load_data(f"csv:{path}?target=price&validation=0", seed=0)
    assert values.classes is None
    assert values.train.size == 18
    labels = catalog.load_data(f"csv:{path}?target=digit&classes=2,0", seed=0)
    assert labels.classes == ("2", "0")


def test_text_files_and_the_reference_become_windows(tmp_path):
    path = tmp_path / "poem.txt"
    path.write_text("roses are red\n" * 20)
    settings = {"kind": "char", "vocabulary_size": 50, "steps": 5}
    splits = catalog.load_text(f"text:{path}?validation=0&test=0.25", **settings)
    assert splits.description == f"text:{path}?validation=0&test=0.25"
    assert splits.test.size == 13
    reference = catalog.load_text("reference", **settings, targets="last")
    assert reference.train.size > 100_000
    assert "e" in reference.vocabulary.tokens


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("digist", "Did you mean 'digits'"),
        ("", "must begin with the name of a source"),
        ("digits?per_clas=5", "Did you mean 'per_class'"),
        ("digits?per_class=none", "`per_class` must be a whole number of at least 1"),
        ("digits?per_class=0", "`per_class` must be a whole number of at least 1"),
        ("digits?per_class", "`per_class` must be a whole number"),
        ("digits?test=1.5", "`test` must be a fraction"),
        ("digits?test=some", "`test` must be a fraction"),
        ("digits?test=0.1&test=0.2", "each key once"),
        ("digits?classes=3,x", "Received: 'x'"),
        ("digits?classes=3", "two or more"),
        ("digits?classes=3,,4", "`classes` must not be empty"),
        ("digits:here", "takes no path"),
        ("line?test=0.1", "a key that `line` does not take"),
        ("folder", "must name a folder of images: `folder:PATH`"),
        ("folder:nowhere", "`size` must be given"),
        ("folder:nowhere?size=8", "must be a folder that exists"),
        ("csv:nowhere.csv", "the column to predict"),
        ("csv:nowhere.csv?target=y", "No such file"),
        ("random?shape=2,3", "`shape` must be one number"),
        ("random?shape=4&classes=1", "two or more"),
        ("random?shape=4&classes=9&count=5", "5 examples of 9 classes"),
        ("text:poem.txt", "must be images or a table here"),
        ("reference", "must be images or a table here"),
    ],
)
def test_specs_that_cannot_be_loaded_are_refused(spec, message):
    with pytest.raises(UserError, match=message):
        catalog.load_data(spec, seed=0)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("digits", "must be text here"),
        ("refrence", "Did you mean 'reference'"),
        ("text:nowhere.txt", "No such file"),
        ("reference?steps=5", "a key that `reference` does not take"),
        ("reference?test=-1", "`test` must be a fraction"),
    ],
)
def test_text_specs_that_cannot_be_loaded_are_refused(spec, message):
    with pytest.raises(UserError, match=message):
        catalog.load_text(spec, kind="char", vocabulary_size=10, steps=5)


def test_a_missing_package_is_named_with_the_way_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(UserError, match=r"pip install 'tfbp\[recipes\]'"):
        catalog.load_data("digits", seed=0)
