import keras
import models
import numpy as np
import pytest
import tensorflow as tf

from tfbp.caching.prefix import find
from tfbp.modeling import freezing

layers = keras.layers
NUMBERS = np.random.default_rng(0)
IMAGES = NUMBERS.uniform(0, 255, (12, 8, 8, 3)).astype(np.float32)
ROWS = NUMBERS.normal(0, 1, (12, 5)).astype(np.float32)


def classified(x, features):
    return keras.Model(x, layers.Dense(3, name="head")(features))


class Shifted(layers.Layer):
    """Adds what `how` says, in ways that no property of the layer shows."""

    def __init__(self, how, **settings):
        super().__init__(**settings)
        self.how, self.scale, self.variable = how, 1.0, tf.Variable(1.0)

    def call(self, x, training=False):
        match self.how:
            case "constant":
                return x + self.scale
            case "draws":
                return x + tf.random.uniform(())
            case "training":
                return x + (1.0 if training else 2.0)
            case "reads":
                return x + self.variable
            case "writes":
                return x + self.variable.assign_add(1.0)
            case "python":
                return x + tf.reshape(tf.py_function(np.random.rand, [], tf.float32), ())
            case "loop draws":
                return tf.while_loop(
                    lambda i, _: i < 2, lambda i, v: (i + 1, v + tf.random.normal(())), (0, x)
                )[1]
            case "loop":
                return tf.while_loop(lambda i, _: i < 2, lambda i, v: (i + 1, v + 1.0), (0, x))[1]
            case "function":
                return tf.function(lambda x: x + 1.0 + self.bias())(x)

    def bias(self):
        return 0.5


def shifted(how):
    rows = keras.Input((5,))
    x = layers.Dense(4, name="frozen")(rows)
    x = Shifted(how, name="shifted")(x)
    return classified(rows, layers.Dense(4, name="second")(x))


@pytest.mark.parametrize("how", ["draws", "training", "reads", "writes", "python", "loop draws"])
def test_a_layer_of_the_users_own_that_is_not_steady_ends_the_prefix(how):
    model = shifted(how)
    prefix = find(model, freezing.freeze(model, "head"))
    assert prefix.layers == ("frozen",)


@pytest.mark.parametrize("how", ["constant", "loop", "function"])
def test_a_layer_of_the_users_own_that_is_steady_is_inside(how):
    model = shifted(how)
    prefix = find(model, freezing.freeze(model, "head"))
    assert prefix.layers == ("frozen", "shifted", "second")
    np.testing.assert_array_equal(prefix.rest(prefix.features(ROWS)), model(ROWS))


def key(model, trainable="head", batch_norm="frozen"):
    return find(model, freezing.freeze(model, trainable, batch_norm)).fingerprint


def seeded(build):
    keras.utils.set_random_seed(7)
    return build()


def test_the_fingerprint_is_of_the_prefix_whatever_it_is_called_and_whatever_follows():
    def other_head():
        x = pixels = keras.Input((8, 8, 3))
        x = layers.GlobalAveragePooling2D()(models.backbone(name="renamed")(x))
        x = layers.Dropout(0.5)(layers.Dense(9, "relu", name="head")(x))
        return keras.Model(pixels, layers.Dense(4)(x))

    first = key(seeded(lambda: models.classifier(models.backbone())))
    assert key(seeded(lambda: models.classifier(models.backbone()))) == first
    assert key(seeded(other_head), "head|dense.*") == first


def test_tensors_at_the_cut_are_in_an_order_that_the_rest_has_no_part_in():
    def branched(deeper, swapped):
        rows = keras.Input((5,))
        a, b = layers.Dense(4, name="a")(rows), layers.Dense(4, name="b")(rows)
        x, y = layers.Dropout(0.5)(a), layers.Dropout(0.5)(b)
        for number in range(deeper):
            y = layers.Dense(4, name=f"head_{number}")(y)
        return classified(rows, layers.Concatenate()([y, x] if swapped else [x, y]))

    kinds = [(1, False), (1, True), (3, False), (3, True)]
    models = [seeded(lambda kind=kind: branched(*kind)) for kind in kinds]
    found = [find(model, freezing.freeze(model, "head.*")) for model in models]
    assert len({prefix.fingerprint for prefix in found}) == 1
    rows = [np.stack(prefix.features(ROWS)) for prefix in found]
    for other in rows[1:]:
        np.testing.assert_array_equal(rows[0], other)


@pytest.mark.parametrize(
    "what", ["weight", "statistic", "constant", "layer", "size", "cut", "type"]
)
def test_the_fingerprint_changes_with_all_that_the_features_hang_on(what):
    model = seeded(lambda: models.classifier(models.backbone()))
    first, other = key(model), "head"
    if what == "weight":
        model.get_layer("body").get_layer("conv_1").bias.assign([0, 0, 0, 1e-6])
    elif what == "statistic":
        model.get_layer("body").get_layer("norm").moving_mean.assign([0, 0, 0, 1e-6])
    elif what == "constant":
        model.get_layer("body").layers[1].scale = 1 / 127.5
    elif what == "layer":
        model = seeded(lambda: models.classifier(models.backbone(layers.ReLU())))
    elif what == "size":
        x = pixels = keras.Input((10, 10, 3))
        for layer in model.get_layer("body").layers[1:]:
            x = layer(x)
        model = classified(pixels, layers.GlobalAveragePooling2D()(x))
    elif what == "cut":
        other = "body/conv_2|head"
    else:
        image = keras.Input((8, 8, 3), dtype="uint8")
        x = layers.GlobalAveragePooling2D()(model.get_layer("body")(image))
        model = classified(image, x)
    assert key(model, other) != first


def test_code_of_the_users_own_is_part_of_the_fingerprint(monkeypatch):
    models = [seeded(lambda how=how: shifted(how)) for how in ("constant", "loop", "function")]
    keys = [key(model) for model in models]
    assert len(set(keys)) == 3
    assert [
        key(seeded(lambda how=how: shifted(how))) for how in ("constant", "loop", "function")
    ] == keys
    models[0].get_layer("shifted").scale = 3.0
    monkeypatch.setattr(Shifted, "bias", lambda self: 0.25)
    changed = [key(model) for model in models]
    assert changed[0] != keys[0] and changed[1] == keys[1] and changed[2] != keys[2]


def test_recurrent_layers_have_the_same_fingerprint_in_a_second_build():
    def recurrent():
        x = steps = keras.Input((4, 3))
        x = layers.LSTM(4, return_sequences=True)(x)
        return classified(steps, layers.GRU(2)(x))

    models = seeded(recurrent), seeded(recurrent)
    assert key(models[0]) == key(models[1])
    models[1].layers[1].weights[0].assign(models[1].layers[1].weights[0] + 1e-3)
    assert key(models[0]) != key(models[1])


def test_a_model_on_two_devices_has_the_prefix_of_one_on_one():
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        mirrored = seeded(lambda: models.classifier(models.backbone()))
    single = seeded(lambda: models.classifier(models.backbone()))
    for one, other in zip(single.weights, mirrored.weights, strict=True):
        one.assign(other.numpy())
    assert key(mirrored) == key(single)
    prefix = find(mirrored, freezing.freeze(mirrored, "head"))
    np.testing.assert_array_equal(
        prefix.features(IMAGES)[0],
        find(single, freezing.freeze(single, "head")).features(IMAGES)[0],
    )
