"""Mistakes in loss, images and examples, as `fit` refuses them; and what passes."""

import dataclasses
import pathlib

import keras
import numpy as np
import pytest

import tfbp
from tfbp import recipe
from tfbp.auditing import examples, losses, preprocessing
from tfbp.finding import AuditFailed

RECIPES = pathlib.Path(__file__).parents[2] / "recipes"
GENERATOR = np.random.default_rng(0)
IMAGES = GENERATOR.integers(0, 256, (24, 8, 8, 3)).astype(np.uint8)
LABELS = np.arange(24) % 2
NAMES = ("cat", "dog")
PHASES = [tfbp.Phase("fit", ".*", epochs=1, learning_rate=1e-3)]


def model(units=2, activation=None, preprocess="auto"):
    images = keras.Input((8, 8, 3))
    backbone = keras.Model(images, keras.layers.Conv2D(2, 3)(images), name="vgg16")
    swapped = tfbp.swap_head(backbone, units, preprocess=preprocess)
    if activation is None:
        return swapped
    return keras.Model(swapped.input, keras.layers.Activation(activation)(swapped.output))


def splits(x=IMAGES, train=range(18), validation=range(18, 24), y=LABELS):
    parts = [tfbp.Examples.from_arrays(x[rows], y[rows]) for rows in map(list, (train, validation))]
    return tfbp.Splits(*parts, classes=NAMES)


def test_what_has_no_fault_is_trained():
    run = tfbp.fit(model(), splits(), tfbp.Classification(NAMES), PHASES)
    assert run.result["accepted"] == []
    assert len(run.history) == 1


@pytest.mark.parametrize(
    ("made", "given", "message"),
    [
        (lambda: model(5), splits(), "loss-mismatch: .* each of the 2 classes"),
        (lambda: model(2, "softmax"), splits(), "loss-mismatch: .* Leave the softmax"),
        (model, splits(y=np.eye(2)[LABELS]), "loss-mismatch: .* one-hot rows"),
        (lambda: model(preprocess=None), splits(), "preprocessing: .* 'vgg16' is left out"),
        (model, splits(x=IMAGES / 255), "preprocessing: .* examples of 0 to 1"),
        (model, splits(validation=range(17, 24)), r"split-overlap: .* row 0 \(as row 17\)"),
        (model, splits(train=range(0, 18, 2)), "class-missing: .* no example of 'dog'"),
    ],
    ids=["width", "softmax", "one-hot", "left out", "0 to 1", "overlap", "class"],
)
def test_a_mistake_is_refused_by_its_id(made, given, message):
    with pytest.raises(AuditFailed, match=message):
        tfbp.fit(made(), given, tfbp.Classification(NAMES), PHASES)


def test_what_is_accepted_is_trained_and_kept_in_the_result():
    given, task = splits(validation=range(17, 24)), tfbp.Classification(NAMES)
    run = tfbp.fit(model(), given, task, PHASES, tfbp.Settings(allow=("split-overlap",)))
    assert [found["id"] for found in run.result["accepted"]] == ["split-overlap"]


def test_what_cannot_run_is_accepted_by_nobody():
    with pytest.raises(tfbp.UserError, match="each of the 2 classes") as caught:
        tfbp.fit(
            model(5),
            splits(),
            tfbp.Classification(NAMES),
            PHASES,
            tfbp.Settings(allow=("loss-mismatch",)),
        )
    assert not isinstance(caught.value, AuditFailed)


@pytest.mark.parametrize("name", sorted(recipe.discover(RECIPES)))
def test_the_default_run_of_a_recipe_has_no_error(name):
    module = recipe.load(name, RECIPES)
    config = module.Config()
    if name == "vgg16":  # ImageNet's weights are a download.
        config = dataclasses.replace(config, weights="none")
    given = module.data(config)
    task, built = module.task(config, given), module.model(config, given)
    found = [
        *losses.findings(built, given, task),
        *preprocessing.findings(built, given, ()),
        *examples.findings(given, task),
    ]
    assert [finding for finding in found if not finding.warning] == []
