import keras
import models
import pytest

from tfbp.errors import UserError
from tfbp.modeling import paths


def two_backbones(second="right"):
    """Returns a model with two nested ones, whose layers have equal names."""
    images = keras.Input((8, 8, 3), name="image")
    x = keras.layers.Rescaling(1 / 255, name="scale")(images)
    backbones = [
        models.backbone(keras.layers.Dropout(0.5, name="dropout"), name=name)
        for name in ("left", second)
    ]
    both = keras.layers.Add(name="sum")([backbone(x) for backbone in backbones])
    x = keras.layers.GlobalAveragePooling2D(name="pool")(both)
    return keras.Model(images, keras.layers.Dense(2, name="head")(x))


def test_a_path_joins_the_names_of_the_nesting_models_and_the_layer():
    found = [path for path, _ in paths.layers(two_backbones())]
    of_one = ["rescaling", "conv_1", "norm", "dropout", "conv_2"]
    assert [path for path in found if path.startswith("left/")][1:] == [f"left/{n}" for n in of_one]
    assert [path for path in found if "/" not in path] == ["image", "scale", "sum", "pool", "head"]


def test_layers_with_weights_are_those_of_the_model_and_no_others():
    model = two_backbones()
    known = paths.with_weights(model)
    of_one = ("conv_1", "norm", "conv_2")
    assert list(known) == [*(f"left/{n}" for n in of_one), *(f"right/{n}" for n in of_one), "head"]
    ours = [id(weight) for layer in known.values() for weight in layer.weights]
    assert sorted(ours) == sorted(id(weight) for weight in model.weights)


def test_a_model_in_a_model_in_a_model_has_all_three_names():
    images = keras.Input((8, 8, 3))
    middle = keras.Model(images, models.backbone(name="inner")(images), name="middle")
    x = keras.Input((8, 8, 3))
    outer = keras.Model(x, middle(x))
    assert list(paths.select(outer, ".*/conv_2")) == ["middle/inner/conv_2"]


def test_a_shared_layer_is_named_once():
    x, shared = keras.Input((3,)), keras.layers.Dense(3, name="shared")
    assert list(paths.with_weights(keras.Model(x, shared(shared(x))))) == ["shared"]


def test_a_pattern_matches_whole_paths():
    model = two_backbones()
    assert list(paths.select(model, "left/conv_.*")) == ["left/conv_1", "left/conv_2"]
    assert list(paths.select(model, "head|.*/norm")) == ["left/norm", "right/norm", "head"]
    for part in ("conv_1", "left", "hea", "left/dropout", "scale"):
        with pytest.raises(UserError):
            paths.select(model, part)


def test_a_pattern_that_matches_nothing_lists_the_paths_and_the_closest():
    with pytest.raises(UserError) as caught:
        paths.select(two_backbones(), "left/conv_3")
    message = str(caught.value)
    assert "`trainable` must match the path of at least one layer" in message
    assert "Received: 'left/conv_3'." in message
    assert "Did you mean 'left/conv_" in message
    for path in paths.with_weights(two_backbones()):
        assert f"\n - {path}" in message


def test_what_is_no_regular_expression_is_refused():
    with pytest.raises(UserError, match=r"`trainable` must be a regular expression .*: '\*'"):
        paths.select(two_backbones(), "*")


def test_two_layers_of_one_path_are_refused():
    class Twins(keras.Model):
        def __init__(self):
            super().__init__()
            self.one, self.two = keras.layers.Dense(2, name="d"), keras.layers.Dense(2, name="d")

        def call(self, x):
            return self.two(self.one(x))

    model = Twins()
    with pytest.raises(UserError, match="must be built"):
        paths.with_weights(model)
    model(keras.ops.ones((1, 2)))
    with pytest.raises(UserError, match="Two layers have the path 'd'"):
        paths.with_weights(model)


def test_variables_outside_any_layer_are_refused():
    class Loose(keras.Model):
        def build(self, shape):
            self.scale = self.add_weight(shape=(), name="scale")

        def call(self, x):
            return x * self.scale

    model = Loose(name="loose")
    model(keras.ops.ones((1, 2)))
    with pytest.raises(UserError, match="`model` 'loose' keeps 1 variables outside any of its"):
        paths.with_weights(model)


class Block(keras.layers.Layer):
    """A transformer's block: attention, and two dense layers in a list."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.attention = keras.layers.MultiHeadAttention(2, 3, name="attention")
        self.dense = [keras.layers.Dense(8, name="up"), keras.layers.Dense(4, name="down")]
        self.dropout = keras.layers.Dropout(0.1, name="dropout")

    def build(self, shape):
        self.attention.build(shape, shape)
        self.dense[0].build(shape)
        self.dense[1].build((*shape[:-1], 8))

    def call(self, x):
        y = self.attention(x, x)
        for layer in self.dense:
            y = layer(y)
        return x + self.dropout(y)


class Encoder(keras.layers.Layer):
    """Blocks one after the other, and with `scaled` a variable of its own."""

    def __init__(self, blocks, scaled=False, **settings):
        super().__init__(**settings)
        self.blocks, self.scaled = blocks, scaled

    def build(self, shape):
        for block in self.blocks:
            if not block.built:
                block.build(shape)
        if self.scaled:
            self.scale = self.add_weight(shape=(), name="scale")

    def call(self, x):
        for block in self.blocks:
            x = block(x)
        return x * self.scale if self.scaled else x


def transformer(blocks=None, **settings):
    if blocks is None:
        blocks = [Block(name="one"), Block(name="two")]
    encoder = Encoder(blocks, name="encoder", **settings)
    return models.chain((5, 4), encoder, keras.layers.Dense(2, name="head"))


OF_A_BLOCK = [
    *(f"attention/{name}" for name in ("query", "key", "value", "attention_output")),
    *("up", "down"),
]


def test_paths_lead_into_layers_that_consist_of_others():
    model = transformer()
    known = paths.with_weights(model)
    inside = [f"encoder/{block}/{path}" for block in ("one", "two") for path in OF_A_BLOCK]
    assert sorted(known) == sorted([*inside, "head"])
    ours = [id(weight) for layer in known.values() for weight in layer.weights]
    assert sorted(ours) == sorted(id(weight) for weight in model.weights)


def test_a_pattern_that_matches_a_layer_that_consists_of_others_matches_all_of_it():
    model = transformer()
    of_two = [f"encoder/two/{path}" for path in OF_A_BLOCK]
    assert sorted(paths.select(model, "encoder/two")) == sorted(of_two)
    assert sorted(paths.select(model, "encoder/two/.*")) == sorted(of_two)
    assert sorted(paths.select(model, "encoder|head")) == sorted(paths.with_weights(model))
    assert list(paths.select(model, ".*/query")) == [
        "encoder/one/attention/query",
        "encoder/two/attention/query",
    ]
    with pytest.raises(UserError, match="\n - encoder/two\n"):
        paths.select(model, "encoder/three")


def test_a_layer_with_a_variable_of_its_own_beside_others_has_one_path():
    model = transformer(scaled=True)
    assert list(paths.with_weights(model)) == ["encoder", "head"]


def test_a_layer_whose_parts_share_a_name_has_one_path():
    model = transformer([Block(name="one"), Block(name="one")])
    assert list(paths.with_weights(model)) == ["encoder", "head"]


def test_a_layer_inside_two_others_has_one_path_and_is_found_by_both():
    shared, x = Block(name="shared"), keras.Input((5, 4))
    y = Encoder([shared], name="left")(x) + Encoder([shared], name="right")(x)
    model = keras.Model(x, y)
    expected = [f"left/shared/{path}" for path in OF_A_BLOCK]
    for pattern in ("left", "right", "left/shared", "right/shared"):
        assert sorted(paths.select(model, pattern)) == sorted(expected)


def test_a_recurrent_layer_has_one_path_and_each_direction_of_two():
    layers = keras.layers
    model = models.chain(
        (5, 4),
        layers.LSTM(3, return_sequences=True, name="lstm"),
        layers.Bidirectional(layers.GRU(3, name="gru"), name="both"),
    )
    assert list(paths.with_weights(model)) == ["lstm", "both/forward_gru", "both/backward_gru"]


def test_a_model_inside_a_layer_is_opened_too():
    inner = keras.Sequential([keras.layers.Dense(3, name="a"), keras.layers.Dense(2, name="b")])
    model = models.chain((5, 4), keras.layers.TimeDistributed(inner, name="each"))
    assert list(paths.with_weights(model)) == [f"each/{inner.name}/a", f"each/{inner.name}/b"]
