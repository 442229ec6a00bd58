"""VGG16 on JPEG photographs, with weights that were pretrained on six other classes of CIFAR-10."""

import dataclasses
import pathlib
import re
import tarfile

import pytest

from tfbp import driver, recipe

pytestmark = pytest.mark.slow

MODULE = recipe.load("vgg16", pathlib.Path(__file__).parents[2] / "recipes")
WANTED = re.compile(r"(train/(frog|horse|ship|truck)/000\d|test/(frog|horse|ship|truck)/00[0-4]\d)")


@pytest.fixture(scope="module")
def photographs(shared_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cifar")
    with tarfile.open(shared_data / "cifar10.tar.gz") as archive:
        members = [member for member in archive if WANTED.match(member.name)]
        archive.extractall(folder, members, filter="data")
    return folder


@pytest.mark.shared_data
def test_pretrained_features_separate_new_classes_better_than_random_ones(
    photographs, shared_data, tmp_path
):
    config = MODULE.Config(
        data=f"folder:{photographs}?validation=0",
        weights=str(shared_data / "vgg16_cifar10_first6.weights.h5"),
        head_epochs=20,
        tune_epochs=0,
        workdir=str(tmp_path / "pretrained"),
        export_dir=str(tmp_path / "exports"),
    )
    pretrained = driver.run(MODULE, config).result
    random = driver.run(
        MODULE,
        dataclasses.replace(
            config, weights="random", allow=("random-frozen",), workdir=str(tmp_path / "random")
        ),
    ).result

    assert pretrained["data"]["sizes"] == {"train": 40, "test": 200}
    accuracies = [result["metrics"]["test"]["accuracy"] for result in (pretrained, random)]
    assert accuracies[0] > accuracies[1] + 0.1
