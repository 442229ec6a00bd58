"""A loss or gradient that is not finite, in runs from the command line."""

import json
import re

import keras
import numpy as np
import pytest

from tfbp import commands

RECIPE = '''
"""Fits values, and one example, the training split's row 17, has no finite loss or gradient."""

import dataclasses

import keras
import numpy as np

import tfbp
from tfbp.data.examples import Examples


@dataclasses.dataclass(frozen=True)
class Config(tfbp.Config):
    spoilt: float = tfbp.field(0.0, "the inputs of that example")
    epochs: int = tfbp.field(3, "passes over the training examples")


def data(config):
    numbers = np.random.default_rng(3)
    x = numbers.normal(0, 1, (100, 3)).astype(np.float32)
    x[17] = config.spoilt
    y = np.abs(x).sum(axis=1, keepdims=True).clip(0, 10)
    parts = [Examples.from_arrays(x[low:high], y[low:high]) for low, high in ((0, 80), (80, 100))]
    return tfbp.Splits(*parts)


def task(config, splits):
    return tfbp.Regression()


def model(config, splits):
    inputs = keras.Input((3,))
    hidden = keras.layers.Dense(8, use_bias=False, name="hidden")(inputs)
    # The slope of the root is not finite at 0.
    roots = keras.ops.sqrt(keras.ops.square(hidden))
    return keras.Model(inputs, keras.layers.Dense(1, name="head")(roots))


def phases(config):
    return [tfbp.Phase("fit", trainable=".*", epochs=config.epochs, learning_rate=0.01)]
'''


@pytest.fixture
def run(tmp_path, monkeypatch, capfd):
    """Returns a function that runs the recipe and returns the exit code and what was said."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(RECIPE)

    def run(*flags):
        places = "--workdir=run", "--export_dir=exports", "--checkpoint_seconds=0"
        code = commands.main("recipes", ["run", "mine.py", *places, "--batch_size=8", *flags])
        return code, capfd.readouterr().err

    return run


def test_an_infinite_loss_stops_the_run_which_keeps_a_checkpoint_and_exports_nothing(run, tmp_path):
    code, said = run("--spoilt=3e38")
    assert code == 2
    message = re.search(
        r"^Error: In phase 'fit': The loss is \S+ at epoch 1, step \d+, .*$", said, re.M
    )
    assert message is not None, said
    assert "17 (row 17)" in message[0]
    assert re.search(r"of the examples (\d+ \(row \d+\)(, )?){8}\. ", message[0])
    assert not (tmp_path / "exports").exists()
    assert not (tmp_path / "run" / "result.json").exists()
    # What is kept is finite: from there the run comes to the same step in the same way.
    code, said = run("--spoilt=3e38")
    assert code == 2
    assert said.endswith(f"{message[0]}\n")


def test_updates_that_are_skipped_are_counted_and_the_run_comes_to_its_end(run, tmp_path):
    code, said = run("--on_nan=skip")
    assert code == 0, said
    warnings = re.findall(r"Update left out, number (\d) of at most 9: .*17 \(row 17\)", said)
    assert warnings == ["1", "2", "3"]
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["phases"][0]["skipped_updates"] == 3
    assert np.isfinite([part["loss"] for part in result["metrics"].values()]).all()
    model = keras.models.load_model(tmp_path / "run" / "model.keras", compile=False)
    assert all(np.isfinite(weight.numpy()).all() for weight in model.weights)
    assert (tmp_path / "exports" / "mine" / "1").is_dir()


def test_without_skipping_the_same_gradient_stops_the_run(run):
    code, said = run()
    assert code == 2
    assert "the update before has spoiled the weights" in said


def test_the_tenth_skipped_update_stops_the_run(run, tmp_path):
    code, said = run("--on_nan=skip", "--epochs=20")
    assert code == 2
    assert said.count("Update left out") == 9
    assert "In phase 'fit': 10 updates of the phase were not finite and were left out" in said
    assert not (tmp_path / "exports").exists()
