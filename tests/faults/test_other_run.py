"""A stopped run that is started again with other flags, data, classes, model or code."""

import pathlib
import re
import shutil

import numpy as np
import pytest
import tensorflow as tf

from tfbp import commands
from tfbp.training import loop
from tfbp.workers import interruption

RECIPE = '''"""Tells dark images from bright ones."""

import dataclasses
import keras
import tfbp
from tfbp.data import catalog


@dataclasses.dataclass(frozen=True)
class Config(tfbp.Config):
    data: str = tfbp.field("folder:images?size=6", "images with labels")
    rate: float = tfbp.field(0.1, "learning rate")


def data(config):
    return catalog.load_data(config.data, seed=config.seed, size=6)


def task(config, splits):
    return tfbp.Classification(splits.classes)


def model(config, splits):
    x = keras.Input(splits.train.spec[0].shape)
    y = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(x))
    y = keras.layers.Dense(4, activation="relu")(y)
    return keras.Model(x, keras.layers.Dense(2)(y), name="shades")


def phases(config):
    return [tfbp.Phase("fit", ".*", epochs=2, learning_rate=config.rate)]
'''


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """Returns a folder with the recipe, the images and a run that was stopped."""
    folder = tmp_path_factory.mktemp("stopped")
    for name, low in (("dark", 0), ("bright", 200)):
        (folder / "images" / name).mkdir(parents=True)
        for number in range(20):
            pixels = np.random.default_rng(low + number).integers(low, low + 55, (6, 6, 3))
            content = tf.io.encode_png(pixels.astype(np.uint8)).numpy()
            (folder / "images" / name / f"{number}.png").write_bytes(content)
    (folder / "shades.py").write_text(RECIPE)

    def stop(*arguments, **settings):
        raise interruption.Interrupted

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(loop, "train", stop)
        assert run() == 75
    assert not (folder / "run" / "manifest.json").exists()
    return folder


@pytest.fixture
def folder(stopped, tmp_path, monkeypatch):
    """Returns a copy of that folder, in which the process works."""
    copy = shutil.copytree(stopped, tmp_path / "copy")
    monkeypatch.chdir(copy)
    return copy


def run(*flags):
    return commands.main(".", ["run", "shades", "--workdir=run", "--batch_size=8", *flags])


def change(file, old, new):
    text = pathlib.Path(file).read_text()
    assert old in text
    pathlib.Path(file).write_text(text.replace(old, new))


def one_image_less():
    next(pathlib.Path("images", "dark").iterdir()).unlink()


@pytest.mark.parametrize(
    ("flags", "changed", "named"),
    [
        (["--rate=0.2"], None, "`rate` (0.1, not 0.2)"),
        ([], one_image_less, "`examples` ("),
        (["--data=folder:images?size=6&validation=0.3"], None, "`data` ("),
        ([], lambda: change("shades.py", '"relu"', '"tanh"'), "`model` ("),
        ([], lambda: change("shades.py", "Dense(4", "Dense(5"), "`model` ("),
    ],
    ids=["flags", "images", "data flag", "activation", "width"],
)
def test_it_is_refused_by_what_differs(folder, capsys, flags, changed, named):
    config = pathlib.Path("run", "config.json").read_text()
    if changed:
        changed()
    assert run(*flags) == 2
    message = capsys.readouterr().err
    assert "`workdir` holds another run, which differs in" in message
    assert named in message
    assert "--restart" in message
    assert pathlib.Path("run", "config.json").read_text() == config


def test_classes_in_another_order_are_named_where_no_flag_says_so(folder, capsys):
    change("shades.py", "config.data, seed", 'config.data + "&classes=dark,bright", seed')
    assert run() == 2
    assert "`classes` (['bright', 'dark'], not ['dark', 'bright'])" in capsys.readouterr().err


def test_other_code_that_does_the_same_is_a_warning(folder, capsys):
    change("shades.py", "def phases", "# Two epochs are enough.\ndef phases")
    assert run() == 0
    said = capsys.readouterr().err
    assert said.startswith("Warning: ")
    assert "run goes on with other code than it began with: `code`" in said


def test_a_restart_keeps_the_old_run_beside(folder, capsys):
    assert run("--rate=0.2", "--restart") == 0
    assert re.search(
        r"The run that was in \S+/run is kept in \S+/run\.1\.", capsys.readouterr().err
    )
    assert pathlib.Path("run.1", "checkpoints").is_dir()
    assert pathlib.Path("run", "manifest.json").exists()
    # The flag file repeats the run; it does not begin anew each time.
    assert run("--rate=0.2", "--flagfile=run/flags.txt") == 0
    assert "has ended already: nothing to do" in capsys.readouterr().err
