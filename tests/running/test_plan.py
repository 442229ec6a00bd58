import types

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tfbp.data.examples import Examples
from tfbp.data.splits import Splits
from tfbp.modeling import adapters, freezing
from tfbp.running import plan as planning
from tfbp.running.plan import Group
from tfbp.running.run import Run
from tfbp.settings import Settings
from tfbp.tasks.regression import Regression
from tfbp.training import optimizer
from tfbp.training.phase import BATCH_NORM, Phase

NAMES = ("stem_conv", "stem_bn", "block1_conv1", "block1_conv2", "block10_conv1", "stage_0_block_1")


def network():
    """Returns a backbone, in which each layer owns 4 + 2 values or a BatchNormalization 4 × 2, with
    a head of two layers of 6 values each.
    """
    layers = keras.layers
    x = features = keras.Input((2,))
    for name in NAMES:
        layer = (
            layers.BatchNormalization if name.endswith("bn") else lambda **s: layers.Dense(2, **s)
        )
        x = layer(name=name)(x)
    body = keras.Model(features, x, name="body")
    x = inputs = keras.Input((2,))
    for layer in (body, layers.Dense(2, name="head_1"), layers.Dense(2, name="head")):
        x = layer(x)
    return keras.Model(inputs, x)


def groups(model, trainable, **changes):
    changes = {"epochs": 3, "learning_rate": 0.1} | changes
    phase = Phase("phase", trainable, **changes)
    frozen = freezing.freeze(model, trainable, phase.batch_norm)
    return planning.groups(model, frozen, optimizer.rates(phase, frozen))


def rows(found):
    return {
        group.name: (group.trains, group.frozen, group.statistics, group.rates) for group in found
    }


def test_layers_whose_names_begin_alike_are_one_group_in_the_order_of_the_graph():
    assert groups(network(), "head") == (
        Group("body/stem_*", 2, 0, 6 + 8, 0, ()),
        Group("body/block1_conv*", 2, 0, 12, 0, ()),
        Group("body/block10_conv1", 1, 0, 6, 0, ()),
        Group("body/stage_0_block_1", 1, 0, 6, 0, ()),
        Group("head*", 2, 6, 6, 0, (0.1,)),
    )


def test_statistics_are_told_from_what_trains_and_what_is_frozen():
    model = network()
    stem = [rows(groups(model, ".*", batch_norm=mode))["body/stem_*"] for mode in BATCH_NORM]
    assert stem == [(6, 8, 0, (0.1,)), (6 + 4, 4, 0, (0.1,)), (6 + 4, 0, 4, (0.1,))]


def test_of_a_layer_with_adapters_these_alone_train():
    model = network()
    adapters.add_lora(model, "body/block1_conv1", rank=1)
    assert rows(groups(model, "head|body/block1_conv1"))["body/block1_conv*"] == (4, 12, 0, (0.1,))


def test_a_group_says_the_lowest_and_the_highest_of_its_rates():
    model = network()
    found = rows(groups(model, "head.*|body/block1_.*", learning_rate={"head.*": 1.0, ".*": 0.5}))
    assert found["head*"][3] == (1.0,)
    assert found["body/block1_conv*"][3] == (0.5,)
    found = rows(groups(model, "head.*|body/block1_.*", learning_rate=1.0, layer_decay=0.5))
    assert found["head*"][3] == (0.5, 1.0)
    assert found["body/block1_conv*"][3] == (0.125, 0.25)


@pytest.fixture(scope="module")
def model():
    return network()


@settings(max_examples=25, deadline=None)
@given(names=st.sets(st.sampled_from((*NAMES, "head_1"))), mode=st.sampled_from(BATCH_NORM))
def test_every_value_is_counted_once_and_what_trains_is_what_keras_would_train(model, names, mode):
    pattern = "|".join(f"(body/)?{name}" for name in {*names, "head"})
    found = groups(model, pattern, batch_norm=mode)
    counted = sum(group.trains + group.frozen + group.statistics for group in found)
    assert counted == model.count_params()
    assert sum(group.layers for group in found) == len(NAMES) + 2
    due = sum(np.prod(variable.shape) for variable in model.trainable_variables)
    assert sum(group.trains for group in found) == due


@pytest.mark.parametrize(("accumulate", "updates"), [(1, 9), (2, 6), (3, 3), (4, 3)])
def test_steps_and_updates_are_counted(accumulate, updates):
    x, y = np.ones((10, 2), np.float32), np.ones((10, 2), np.float32)
    phase = Phase("phase", "head", epochs=3, learning_rate=0.1, accumulate=accumulate)
    splits = Splits(Examples.from_arrays(x, y))
    planned = planning.of_phase(run(network(), splits, phase, batch_size=4), 0, {})
    assert (planned.steps, planned.updates) == (3 * 3, updates)  # 10 examples in batches of 4


def run(model, splits, phase, batch_size):
    strategy = tf.distribute.get_strategy()
    return Run(model, splits, Regression(), (phase,), Settings(batch_size=batch_size), strategy)


class Clock(keras.layers.Layer):
    """Lets a clock run on by a second for each training step, by a quarter for another one."""

    def __init__(self):
        super().__init__()
        self.now = 0.0

    def call(self, x, training=None):
        def run_on():
            self.now += 1.0 if training else 0.25

        tf.py_function(run_on, [], [])
        return x


def test_the_time_of_a_phase_is_estimated_from_a_few_steps(monkeypatch):
    x, y = np.ones((40, 1), np.float32), np.ones((40, 1), np.float32)
    train, validation = (Examples.from_arrays(x[:n], y[:n]) for n in (40, 8))
    clock = Clock()
    model = keras.Sequential([keras.Input((1,)), clock, keras.layers.Dense(1, name="dense")])
    phase = Phase("fit", "dense", epochs=3, learning_rate=0.1)
    planned = run(model, Splits(train, validation), phase, batch_size=2)
    monkeypatch.setattr(planning, "time", types.SimpleNamespace(perf_counter=lambda: clock.now))
    cost = planning.of_phase(planned, 0, {}, time=True).cost
    assert cost.seconds == 3 * (20 * 1.0 + 4 * 0.25)
    assert clock.now < 10
    assert cost.memory > 50e6  # TensorFlow alone is larger
