"""What Keras's own callback saves inside a phase: a model that Keras loads, without tfbp."""

import os
import subprocess
import sys
import warnings

import keras
import numpy as np
import pytest

import tfbp

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(90, 6)).astype(np.float32)
Y = np.arange(90) % 3
PROGRAM = """
import sys, keras, numpy
keras.models.load_model(sys.argv[1]).train_on_batch(numpy.ones((4, 6)), numpy.arange(4) % 3)
assert not [name for name in sys.modules if name.startswith("tfbp")]
"""


def fit(path, **settings):
    """Returns the model of a phase of two epochs, whose end a callback has saved."""
    keras.utils.set_random_seed(0)
    layers = keras.layers.Dense(8, "relu", name="hidden"), keras.layers.Dense(3, name="head")
    model = keras.Sequential([keras.Input((6,)), *layers])
    splits = tfbp.Splits.from_arrays(X, Y)
    phase = tfbp.Phase("fit", **{"trainable": ".*", "learning_rate": 0.01, "epochs": 2} | settings)
    saving = keras.callbacks.ModelCheckpoint(path)
    task, accept = tfbp.Classification(splits.classes), tfbp.Settings(allow=("random-frozen",))
    tfbp.fit(model, splits, task, phase, accept, callbacks=[saving])
    return model


def load(path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # such as that the optimizer's variables are skipped
        return keras.models.load_model(path)


@pytest.mark.parametrize(
    ("settings", "rate"),
    [
        ({}, 0.01),
        ({"optimizer": "adamw", "weight_decay": 0.1, "trainable": "head"}, 0.01),
        ({"optimizer": "rmsprop", "accumulate": 2}, 0.01),
        ({"warm_up": 0.5}, 0.01),
        # Of the one cycle's end, and the cosine's: the rate of the update that would follow.
        ({"schedule": "one_cycle", "optimizer": "sgd"}, 1e-5),
        ({"schedule": "cosine"}, 0.0),
        ({"learning_rate": {"head": 0.02, ".*": 0.01}}, 0.02),
    ],
    ids=str,
)
def test_it_loads_with_the_weights_and_the_optimizer_s_state(tmp_path, settings, rate):
    model = fit(tmp_path / "model.keras", **settings)
    loaded = load(tmp_path / "model.keras")
    for ours, theirs in zip(loaded.weights, model.weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    kind = settings.get("optimizer", "adam")
    assert type(loaded.optimizer).__name__.lower() == kind
    steps = 6  # two epochs of 72 examples in batches of 32
    assert int(loaded.optimizer.iterations) == (steps - 2 if "accumulate" in settings else steps)
    assert float(loaded.optimizer.learning_rate) == pytest.approx(rate, abs=1e-9)
    slots = loaded.optimizer.variables[2:]
    assert all(np.any(slot) for slot in slots)
    assert bool(slots) == (kind != "sgd")


def test_training_goes_on_from_it_in_keras_as_it_would_in_tfbp(tmp_path):
    """One update of plain Keras on the loaded model, held against Adam's formula by its state."""
    fit(tmp_path / "model.keras", trainable="head")
    loaded = load(tmp_path / "model.keras")
    kernel = loaded.get_layer("head").kernel
    before = kernel.numpy().astype(float)
    slots = loaded.optimizer.variables[2:]
    momentum, velocity = (
        next(slot for slot in slots if name in slot.path and slot.shape == kernel.shape)
        for name in ("momentum", "velocity")
    )
    m, v, t = momentum.numpy().astype(float), velocity.numpy().astype(float), 7
    loaded.train_on_batch(X[:8], Y[:8])
    gradient = (momentum.numpy() - 0.9 * m) / 0.1  # Kingma & Ba 2015, alg. 1
    m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
    step = 0.01 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-7)
    np.testing.assert_allclose(kernel.numpy(), before - step, atol=1e-6)


def test_it_loads_in_a_process_that_knows_nothing_of_tfbp(tmp_path):
    fit(tmp_path / "model.keras", epochs=1)
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", PROGRAM, tmp_path / "model.keras"]
    subprocess.run(command, check=True, env=kept, cwd=tmp_path)
