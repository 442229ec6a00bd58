"""The benchmark of checkpoints, on a small model."""

import importlib
import pathlib

import keras
import pytest

from tfbp.modeling import heads

pytestmark = pytest.mark.slow

BENCHMARKS = pathlib.Path(__file__).parents[2] / "benchmarks"


def test_it_times_both_kinds_of_turns_and_both_kinds_of_checkpoints(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    benchmark = importlib.import_module("checkpoints")
    images = keras.Input((8, 8, 3))
    features = keras.layers.Dense(300, name="wide")(keras.layers.Flatten()(images))
    backbone = keras.Model(images, features, name="body")
    model = heads.swap_head(backbone, classes=benchmark.CLASSES, preprocess=lambda x: x / 255)
    settings = benchmark.Flags(checkpoint_seconds=0.1, checkpoints=1, turns=2, batch_size=4)
    seconds, costs = benchmark.measure(settings, model)
    assert {kind: len(each) for kind, each in seconds.items()} == {"off": 2, "on": 2}
    assert min(seconds["off"] + seconds["on"]) > 0
    # Weights and Adam's two slots for each, in float32; in the head phase of the head alone.
    assert costs["full tuning"].bytes == pytest.approx(12 * model.count_params(), rel=0.05)
    assert costs["head phase"].bytes < 0.2 * costs["full tuning"].bytes
    assert all(0 < cost.held_up < cost.written for cost in costs.values())
