"""What is particular to the head swap of VGG16: where its weights come from, and what trains."""

import dataclasses
import pathlib

import numpy as np
import pytest

from tfbp import driver, recipe, storage
from tfbp.modeling import freezing

MODULE = recipe.load("vgg16", pathlib.Path(__file__).parents[2] / "recipes")
DATA = "random?shape=32,32,3&classes=2&count=20"


def build(**settings):
    config = MODULE.Config(data=DATA, **settings)
    return MODULE.model(config, MODULE.data(config)), MODULE.phases(config)


def backbone(model):
    return model.get_layer("vgg16").get_weights()


@pytest.fixture(scope="module")
def earlier_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    model, _ = build(weights="none", seed=5)
    model.save(folder / "model.keras")
    storage.write_manifest(folder, ["model.keras"])
    return folder, backbone(model)


def test_an_earlier_run_gives_its_backbone_to_a_new_head(earlier_run):
    folder, theirs = earlier_run

    model, _ = build(weights=str(folder), hidden=(7,))

    for ours, expected in zip(backbone(model), theirs, strict=True):
        np.testing.assert_array_equal(ours, expected)
    assert model.get_layer("head_1").units == 7


@pytest.mark.parametrize("last_block", [4, 5])
def test_the_head_trains_first_and_then_the_last_block_with_it(earlier_run, last_block):
    model, (head, tune) = build(weights=str(earlier_run[0]), last_block=last_block)

    assert list(freezing.freeze(model, head.trainable).trainable) == ["head"]
    convolutions = [f"vgg16/block{last_block}_conv{number}" for number in (1, 2, 3)]
    assert list(freezing.freeze(model, tune.trainable).trainable) == [*convolutions, "head"]
    assert tune.learning_rate < head.learning_rate
    assert model.get_layer("vgg16").layers[-1].name == f"block{last_block}_pool"


def test_from_scratch_everything_trains():
    model, (scratch,) = build(weights="none")

    assert not freezing.freeze(model, scratch.trainable).frozen


def test_only_training_images_are_augmented():
    config = MODULE.Config(data=DATA, weights="random", flip=True, crop=0.3)
    splits = MODULE.data(config)
    indices = np.arange(4)

    plain, _ = splits.train.read(indices)
    assert not np.allclose(splits.train.read_augmented(indices, 0, 0)[0], plain)
    held_out, _ = splits.test.read(indices[:1])
    np.testing.assert_array_equal(splits.test.read_augmented(indices[:1], 0, 0)[0], held_out)


def test_the_plan_says_what_the_audit_finds_and_no_more_of_what_is_accepted():
    config = MODULE.Config(data=DATA, weights="random", head_epochs=1, tune_epochs=0)

    assert [finding.id for finding in driver.plan(MODULE, config).findings] == ["random-frozen"]
    accepted = dataclasses.replace(config, allow=("random-frozen",))
    assert driver.plan(MODULE, accepted).findings == ()
