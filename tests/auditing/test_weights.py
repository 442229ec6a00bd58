"""Weights that were not loaded: each mistake is refused by name, and the mended model passes."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfbp
from tfbp.auditing import weights
from tfbp.modeling import adapters, backbones, freezing

HEAD = tfbp.Phase("head", "head", epochs=1, learning_rate=0.1)


def backbone():
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3, name="first")(inputs)
    x = keras.layers.BatchNormalization(name="norm")(x)
    x = keras.layers.DepthwiseConv2D(3, name="second")(x)
    x = keras.layers.SeparableConv2D(4, 3, name="third")(x)
    return keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(x), name="net")


def with_head(inner):
    inputs = keras.Input((8, 8, 3))
    return keras.Model(inputs, keras.layers.Dense(2, name="head")(inner(inputs)), name="whole")


def load(layer):
    """Gives a layer weights that no initializer drew."""
    layer.set_weights([weight + 0.5 for weight in layer.get_weights()])


def found(model, phase=HEAD, given=()):
    freezing.freeze(model, phase.trainable, phase.batch_norm)
    return list(weights.findings(model, phase, given))


def test_frozen_layers_at_their_random_start_are_named():
    inner = backbone()
    (finding,) = found(with_head(inner))
    assert finding.id == "random-frozen" and not finding.warning
    for name in ("'head'", "net/first", "net/second", "net/third"):
        assert name in finding.message
    assert "norm" not in finding.message  # BatchNormalization starts at ones and zeros
    for layer in inner.layers:
        load(layer)
    assert not found(with_head(inner))


def test_what_the_first_phase_trains_may_start_at_random():
    everything = tfbp.Phase("all", ".*", epochs=1, learning_rate=0.1)
    assert not found(with_head(backbone()), everything)


@pytest.mark.parametrize("given", [True, False], ids=["given", "nested"])
def test_weights_loaded_in_part_are_told_from_those_that_were_not(given):
    inner = backbone()
    load(inner.get_layer("first"))
    load(inner.get_layer("third"))
    (finding,) = found(with_head(inner), given=[inner] if given else [])
    assert finding.id == "weights-not-loaded"
    fresh, loaded = finding.message.split("while")
    assert "net/second" in fresh and "net/first" not in fresh
    assert "net/first, net/third" in loaded and "net/second" not in loaded
    load(inner.get_layer("second"))
    assert not found(with_head(inner), given=[inner] if given else [])


def test_a_backbone_that_is_given_must_be_loaded_even_where_all_of_it_trains():
    everything = tfbp.Phase("all", ".*", epochs=1, learning_rate=0.1)
    inner = backbone()
    (finding,) = found(with_head(inner), given=[inner])
    assert finding.id == "weights-not-loaded" and "no weights were loaded" in finding.message
    load(inner.get_layer("first"))
    (finding,) = found(with_head(inner), everything, given=[inner])
    assert "only a part" in finding.message


@pytest.mark.parametrize(
    "layer",
    [
        keras.layers.Embedding(10, 4, name="body"),
        keras.layers.LSTM(4, name="body"),
        keras.layers.GRU(4, return_sequences=True, name="body"),
        keras.layers.Bidirectional(keras.layers.SimpleRNN(4), name="body"),
        keras.layers.Dense(4, kernel_initializer="orthogonal", name="body"),
        keras.layers.Dense(4, kernel_initializer=keras.initializers.HeNormal(7), name="body"),
        keras.layers.EinsumDense("abc,cd->abd", (5, 4), name="body"),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_the_draws_of_every_kind_of_layer_are_known_again(layer):
    tokens = isinstance(layer, keras.layers.Embedding)
    inputs = keras.Input((5,), dtype="int32") if tokens else keras.Input((5, 3))
    x = keras.layers.Flatten()(layer(inputs))
    model = keras.Model(inputs, keras.layers.Dense(2, name="head")(x))
    (finding,) = found(model)
    assert finding.id == "random-frozen" and "body" in finding.message
    load(layer)
    assert not found(model)


def test_layers_of_attention_are_known_again_and_so_are_kernels_with_adapters():
    inputs = keras.Input((5, 4))
    attention = keras.layers.MultiHeadAttention(2, 2, name="attention")
    x = keras.layers.Dense(4, name="dense")(attention(inputs, inputs))
    model = keras.Model(inputs, keras.layers.Dense(2, name="head")(x))
    adapters.add_lora(model, "dense", 1)
    phase = tfbp.Phase("adapt", "dense|head", epochs=1, learning_rate=0.1)
    (finding,) = found(model, phase)
    assert "attention, dense" in finding.message
    load(attention)
    (finding,) = found(model, phase)  # the kernel below the adapters is frozen
    assert "attention" not in finding.message and "dense" in finding.message
    load(model.get_layer("dense"))
    assert not found(model, phase)


def test_one_number_is_no_draw_unless_it_is_equal():
    inputs = keras.Input((1,))
    body = keras.layers.Dense(1, name="body")
    model = keras.Model(inputs, keras.layers.Dense(2, name="head")(body(inputs)))
    assert [finding.id for finding in found(model)] == ["random-frozen"]
    body.kernel.assign(2 * body.kernel)
    assert not found(model)


def test_layers_that_start_without_a_draw_are_nobodys_mistake():
    inputs = keras.Input((4,))
    start = keras.initializers.Identity()
    x = keras.layers.Dense(4, kernel_initializer=start, name="body")(inputs)
    assert not found(keras.Model(inputs, keras.layers.Dense(2, name="head")(x)))


def test_a_he_start_and_a_start_under_several_devices_are_known_again():
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        inner = backbone()
        model = with_head(inner)
    assert "net/first" in found(model)[0].message
    before = np.array(inner.get_layer("first").kernel)
    backbones.he_start(inner, seed=3)
    assert np.abs(np.array(inner.get_layer("first").kernel) - before).max() > 0
    (finding,) = found(model)
    assert finding.id == "random-frozen" and "net/first" in finding.message
