import itertools
import pathlib
import random
import warnings

import keras
import numpy as np
import processes
import pytest
import tensorflow as tf

from tfbp import commands, recipe
from tfbp.errors import UserError
from tfbp.modeling import graph

RECIPES = pathlib.Path(__file__).parents[2] / "recipes"


class Residual(keras.layers.Layer):
    """A layer of its own, of two others, without settings that Keras can write."""

    def __init__(self, units, function):
        super().__init__()
        self.function = function
        self.inner = keras.layers.Dense(units)
        self.after = keras.layers.Dropout(0.1)

    def call(self, inputs):
        return inputs + self.after(self.function(self.inner(inputs)))


class Subclassed(keras.Model):
    def __init__(self, units):
        super().__init__()
        self.first = keras.layers.Dense(units, activation="relu")
        self.rest = [keras.layers.Dropout(0.5), keras.layers.Dense(2)]

    def call(self, inputs):
        x = self.first(inputs)
        for layer in self.rest:
            x = layer(x)
        return x


def functional(
    units=4, activation="relu", rate=0.1, name=None, kernel="glorot_uniform", dtype=None, shape=(3,)
):
    inputs = keras.Input(shape)
    settings = {"activation": activation, "kernel_initializer": kernel, "dtype": dtype}
    x = keras.layers.Dense(units, name=name, **settings)(inputs)
    x = keras.layers.Dropout(rate)(x)
    return keras.Model(inputs, keras.layers.Dense(2)(x))


def sequential(units=4):
    return keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(units), keras.layers.BatchNormalization()]
    )


def nested(training=None, inner=sequential, times=1):
    inputs, model = keras.Input((3,), name="x"), inner()
    x = model(inputs, training=training)
    for _ in range(times - 1):
        x = keras.layers.Dense(3)(x) + model(inputs, training=training)[:, :3]
    return keras.Model({"x": inputs}, {"y": x * 2.0 + 1.0})


def branched(crossed=False, factor=2.0):
    """Returns a model of two equal branches, one of which is subtracted from the other."""
    one, other = keras.Input((3,), name="one"), keras.Input((3,), name="other")
    left, right = keras.layers.Dense(2)(one), keras.layers.Dense(2)(other)
    pair = [right, left] if crossed else [left, right]
    return keras.Model([one, other], keras.layers.Subtract()(pair) * factor)


def shared(times=2, own=False):
    """Returns a model with a layer in several places, or with an equal one in each."""
    inputs, layer = x, _ = keras.Input((3,)), keras.layers.Dense(3)
    for _ in range(times):
        x = (keras.layers.Dense(3) if own else layer)(x)
    return keras.Model(inputs, x)


def shared_by_two_models(own=False):
    inputs, layers = keras.Input((3,)), [keras.layers.Dense(3), keras.layers.Dense(3)]
    halves = []
    for layer in layers if own else layers[:1] * 2:
        x = keras.Input((3,))
        halves.append(keras.Model(x, layer(x)))
    return keras.Model(inputs, halves[0](inputs) - halves[1](inputs))


def recurrent(units=3, merge="concat"):
    x = inputs = keras.Input((5, 2))
    x = keras.layers.Bidirectional(keras.layers.LSTM(units, return_sequences=True), merge)(x)
    x = keras.layers.TimeDistributed(functional(shape=(x.shape[-1],)))(x)
    x = keras.layers.MultiHeadAttention(2, 3)(x, x)
    return keras.Model(inputs, keras.layers.RandomFlip()(x[..., None]))


def with_a_layer_of_its_own(units=3, function=keras.ops.relu):
    inputs = keras.Input((3,))
    return keras.Model(inputs, Residual(units, function)(inputs))


def subclassed(units=4):
    model = Subclassed(units)
    model(np.zeros((2, 3), np.float32))
    return model


def cut(end=3):
    """Returns what lies between two tensors inside another model, as a model."""
    whole = functional()
    return keras.Model(whole.layers[1].output, whole.layers[end].output)


BUILDERS = [
    functional,
    sequential,
    nested,
    branched,
    shared,
    shared_by_two_models,
    recurrent,
    with_a_layer_of_its_own,
    subclassed,
    cut,
    lambda: functional(kernel=keras.initializers.Constant(np.float32([[1] * 4] * 3))),
]


@pytest.mark.parametrize("build", BUILDERS)
def test_a_model_built_twice_has_one_graph(build):
    first, again = build(), build()
    assert [layer.name for layer in first.layers] != [layer.name for layer in again.layers]
    assert graph.fingerprint(first) == graph.fingerprint(again)


def test_each_change_to_a_graph_is_seen_and_no_two_are_taken_for_one():
    models = {
        "functional": functional(),
        "units": functional(units=5),
        "activation": functional(activation="tanh"),
        "dropout": functional(rate=0.2),
        "name": functional(name="features"),
        "initializer": functional(kernel="he_normal"),
        "dtype": functional(dtype="mixed_bfloat16"),
        "input": functional(shape=(4,)),
        "sequential": sequential(),
        "sequential units": sequential(5),
        "nested": nested(),
        "nested in inference mode": nested(training=False),
        "nested functional": nested(inner=functional),
        "nested twice": nested(times=2),
        "branched": branched(),
        "crossed": branched(crossed=True),
        "factor": branched(factor=3.0),
        "shared": shared(),
        "shared thrice": shared(3),
        "not shared": shared(own=True),
        "shared by two models": shared_by_two_models(),
        "not shared by two models": shared_by_two_models(own=True),
        "recurrent": recurrent(),
        "recurrent units": recurrent(units=2),
        "recurrent merge": recurrent(merge="sum"),
        "own": with_a_layer_of_its_own(),
        "subclassed": subclassed(),
        "subclassed units": subclassed(5),
        "cut": cut(),
        "cut elsewhere": cut(2),
    }
    found = {name: graph.fingerprint(model) for name, model in models.items()}
    alike = [pair for pair in itertools.combinations(found, 2) if found[pair[0]] == found[pair[1]]]
    assert alike == []


def test_what_training_changes_is_no_part_of_the_graph():
    model = nested()
    before = graph.fingerprint(model)
    model.layers[1].trainable = False
    model.set_weights([weight + 1 for weight in model.get_weights()])
    model.compile("adam", "mse", metrics=["mae"])
    x = np.ones((4, 3), np.float32)
    model.fit({"x": x}, {"y": np.ones((4, 4), np.float32)}, verbose=0)
    keras.Model(model.input, model.layers[1].output)  # which calls its layers again
    assert graph.fingerprint(model) == before


def test_another_process_finds_the_same_graphs(tmp_path):
    program = (
        "import runpy, sys\n"
        "names = runpy.run_path(sys.argv[1])\n"
        "for build in names['BUILDERS']:\n"
        "    print(names['graph'].fingerprint(build()))"
    )
    found = processes.run(program, __file__, log=tmp_path / "log").split()
    own = [graph.fingerprint(build()) for build in BUILDERS]
    assert found[-len(own) :] == own


FLAGS = {
    "linear_regression": ["--data=line"],
    "backprop": ["--data=random?shape=4,4,1&classes=3&count=61", "--layers=16,8,3"],
    "mlp": ["--data=random?shape=4,4,1&classes=3&count=61", "--layers=16,8,3", "--dropout=0.1"],
    "vgg16": ["--data=random?shape=32,32,3&classes=2&count=24", "--weights=none"],
    "lstm_lm": ["--data=text:text.txt", "--units=8", "--embedding=6", "--depth=2"],
}
# What makes another graph of each recipe that has a choice.
OTHERS = {
    "backprop": ["--layers=16,7,3"],
    "mlp": ["--activation=tanh"],
    "vgg16": ["--dropout=0.5"],
    "lstm_lm": ["--cell=gru"],
}


@pytest.mark.parametrize("name", sorted(recipe.discover(RECIPES)))
def test_the_model_of_each_recipe_has_one_graph_and_can_be_written(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = random.Random(0).choices(["the", "cat", "sat", "on", "a", "mat"], k=700)
    pathlib.Path("text.txt").write_text(" ".join(words))
    module = recipe.load(name, RECIPES)

    def build(*flags):
        arguments = [name, *FLAGS[name], *flags]
        _, config = commands.flags.recipe_and_config(RECIPES, arguments, about="")
        return module.model(config, module.data(config))

    first = build()
    graph.check_writable(first)
    assert graph.fingerprint(first) == graph.fingerprint(build())
    if name in OTHERS:
        assert graph.fingerprint(first) != graph.fingerprint(build(*OTHERS[name]))


def double(x):
    return x * 2


@pytest.mark.parametrize("build", [functional, sequential, nested, branched, shared, recurrent])
def test_a_model_that_loads_safely_can_be_written(build, tmp_path):
    model = build()
    graph.check_writable(model)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras", safe_mode=True)
    assert graph.fingerprint(again) == graph.fingerprint(model)


def around(layer, shape=(3,)):
    """Returns a model that holds a layer two models deep."""
    x, inner_x = keras.Input(shape), keras.Input(shape)
    inner = keras.Model(inner_x, layer(inner_x), name="inner")
    return keras.Model(x, inner(x))


LAMBDA = keras.layers.Lambda(double, name="f")


@pytest.mark.parametrize(
    ("layer", "path"),
    [
        (keras.layers.Lambda(lambda x: x, name="twice"), "inner/twice"),
        (keras.layers.Lambda(double, name="twice"), "inner/twice"),
        (keras.Sequential([LAMBDA], name="s"), "inner/s/f"),
        (
            keras.layers.TimeDistributed(LAMBDA, name="t"),
            "inner/t/f",
        ),
    ],
)
def test_a_lambda_layer_is_refused_by_its_path(layer, path):
    with pytest.raises(UserError) as caught:
        graph.check_writable(around(layer, (4, 3)))
    assert "`model` must have no Lambda layers" in str(caught.value)
    assert f"Received: {path!r}." in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"activation": lambda x: x},
        {"kernel_regularizer": lambda x: 0.0},
        {"kernel_initializer": lambda shape, dtype=None: tf.ones(shape, dtype)},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_a_lambda_among_the_settings_of_a_layer_is_refused(settings):
    model = around(keras.layers.Dense(2, name="dense", **settings))
    with warnings.catch_warnings(action="error"), pytest.raises(UserError) as caught:
        graph.check_writable(model)  # without Keras's advice to load the file unsafely
    assert "`model` must have no lambda among its layers' settings" in str(caught.value)
    assert "Received: 'inner/dense'." in str(caught.value)


def test_a_model_that_keras_cannot_save_is_refused_by_the_path_of_the_layer(tmp_path):
    layer = Residual(3, keras.ops.relu)
    model = around(layer)
    with pytest.raises(UserError) as caught:
        graph.check_writable(model)
    assert "`model` must be of classes that Keras can save (" in str(caught.value)
    assert f"Received: 'inner/{layer.name}'." in str(caught.value)
    with pytest.raises(NotImplementedError):  # at the end of the run, without the check
        model.save(tmp_path / "model.keras")
