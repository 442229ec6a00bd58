"""A backbone that is loaded and never called."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfbp
from tfbp.auditing import connection

SPLITS = tfbp.Splits.from_arrays(
    np.random.default_rng(0).normal(size=(20, 4)).astype("float32"),
    np.arange(20) % 2,
    classes=("a", "b"),
)


def body(name="net"):
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)], name=name)


def ids(model, backbones):
    return [finding.id for finding in connection.findings(model, SPLITS, backbones)]


def test_a_network_that_never_calls_its_backbone_is_refused_by_name():
    loaded = body()
    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Dense(2)(inputs), name="network")
    (finding,) = connection.findings(model, SPLITS, [loaded])
    assert finding.id == "not-connected" and not finding.warning
    assert "'network'" in finding.message and "'net'" in finding.message
    mended = keras.Model(inputs, keras.layers.Dense(2)(loaded(inputs)))
    assert not ids(mended, [loaded])


def test_a_part_of_a_backbone_is_enough_and_a_clone_of_it_is_none():
    loaded = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.Dense(2)])
    part = keras.Model(loaded.inputs, loaded.layers[0].output)
    model = keras.Sequential([part, keras.layers.Dense(2)])
    assert not ids(model, [loaded])
    assert ids(keras.models.clone_model(model), [loaded]) == ["not-connected"]


class Network(keras.Model):
    def __init__(self, calls, **settings):
        super().__init__(**settings)
        self.calls = calls
        self.body, self.head = body(), keras.layers.Dense(2)
        self.body.build((None, 4))

    def call(self, x):
        answer = self.body(x)  # called, but what it answers is not always used
        return self.head(answer if self.calls else x)


@pytest.mark.parametrize("given", [True, False])
def test_a_subclassed_model_is_followed_from_its_output(given):
    for calls, expected in ((False, ["not-connected"]), (True, [])):
        model = Network(calls)
        model(np.zeros((1, 4)))
        assert ids(model, [model.body] if given else []) == expected


def test_weights_inside_a_loop_and_a_function_reach_the_output():
    recurrent = keras.Sequential([keras.Input((None, 2)), keras.layers.LSTM(3)], name="recurrent")

    class Wrapped(keras.Model):
        def __init__(self):
            super().__init__()
            self.head = keras.layers.Dense(2)
            self.inner = tf.function(lambda x: recurrent(x))

        def call(self, x):
            return self.head(self.inner(tf.reshape(x, [-1, 2, 2])))

    model = Wrapped()
    model(np.zeros((1, 4)))
    assert not ids(model, [recurrent])


def test_a_backbone_on_several_devices_is_found():
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        loaded, other = body(), body("other")
        inputs = keras.Input((4,))
        model = keras.Model(inputs, keras.layers.Dense(2)(loaded(inputs)))
    assert not ids(model, [loaded])
    assert ids(model, [other]) == ["not-connected"]
