"""A checkpoint of a stopped run that is truncated, deleted in part or changed by one bit."""

import itertools
import pathlib
import shutil

import keras
import numpy as np
import pytest

import tfbp

PHASES = [
    tfbp.Phase("head", "head", epochs=3, learning_rate=0.1),
    tfbp.Phase("tune", ".*", epochs=3, learning_rate=0.01),
]


class Stop(Exception):
    pass


class StopAt(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        if self.model.get_layer("body").trainable and epoch == 1:
            raise Stop


def fit(directory, callbacks=()):
    keras.utils.set_random_seed(0)
    x = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    splits = tfbp.Splits.from_arrays(x, (x[:, 0] > 0).astype(int), seed=1)
    given = keras.Input((6,))
    body = keras.layers.Dense(5, activation="tanh", name="body")(given)
    model = keras.Model(given, keras.layers.Dense(2, name="head")(keras.layers.Dropout(0.2)(body)))
    return tfbp.fit(
        model,
        splits,
        tfbp.Classification(splits.classes),
        PHASES,
        tfbp.Settings(
            workdir=directory, batch_size=8, checkpoint_seconds=0, allow=("random-frozen",)
        ),
        callbacks=callbacks,
    )


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """Returns the directory of a run that was stopped in its second phase, and how it would end."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.raises(Stop):
        fit(folder / "run", [StopAt()])
    return folder / "run", fit(folder / "alone")


def truncate(path):
    path.write_bytes(path.read_bytes()[:-2])


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = (truncate, flip_a_bit, pathlib.Path.unlink)
FILES = ("state.npz", "place.json", "manifest.json")


@pytest.mark.parametrize(("damage", "file"), list(itertools.product(DAMAGES, FILES)))
def test_the_one_before_takes_its_place_and_the_end_is_the_same(
    stopped, tmp_path, caplog, damage, file
):
    run, alone = stopped
    copy = shutil.copytree(run, tmp_path / "run")
    newest = max((copy / "checkpoints").iterdir(), key=lambda path: int(path.name))
    damage(newest / file)
    ended = fit(copy)
    assert f"Checkpoint {newest} is damaged: the one before is used." in caplog.text
    for ours, theirs in zip(ended.model.get_weights(), alone.model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert ended.result["metrics"] == alone.result["metrics"]
