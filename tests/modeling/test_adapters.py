import keras
import models
import numpy as np
import pytest
import tensorflow as tf

from tfbp.errors import UserError
from tfbp.modeling import adapters, freezing, keras_graph, paths

TOKENS = np.random.default_rng(0).integers(0, 7, (12, 5))
IMAGES = np.random.default_rng(0).uniform(0, 1, (12, 6, 6, 3)).astype(np.float32)
Y = np.arange(12) % 3


def text():
    """Returns tokens → embedding → einsum → attention → head."""
    tokens = keras.Input((5,), dtype="int32")
    x = keras.layers.Embedding(7, 6, name="embedding")(tokens)
    x = keras.layers.EinsumDense("bsi,io->bso", (None, 6), bias_axes="o", name="einsum")(x)
    x = keras.layers.MultiHeadAttention(2, 3, name="attention")(x, x)
    x = keras.layers.GlobalAveragePooling1D()(x)
    return keras.Model(tokens, keras.layers.Dense(3, name="head")(x))


def images():
    return models.classifier(models.backbone(size=6))


MODELS = {
    "text": (text, TOKENS, "embedding|einsum|attention"),
    "images": (images, IMAGES, "body/conv_.*"),
}


def named(model):
    """Returns the variables by layer path and their own path."""
    return {
        f"{path}:{variable.path}": variable
        for path, layer in paths.with_weights(model).items()
        for variable in layer.weights
    }


def values(model):
    return {name: variable.numpy() for name, variable in named(model).items()}


def train(model, x, trainable):
    """Freezes, takes two of Keras's own steps, and returns the names of what changed."""
    before = values(model)
    freezing.freeze(model, trainable)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.05), loss, run_eagerly=True)
    model.fit(x, Y, batch_size=6, verbose=0)
    return {name for name, value in values(model).items() if (value != before[name]).any()}


@pytest.mark.parametrize("kind", MODELS)
def test_adapters_start_without_effect_and_learn_alone(kind):
    build, x, layers = MODELS[kind]
    model = build()
    answer = model(x).numpy()
    assert adapters.add_lora(model, layers, rank=2) is model
    np.testing.assert_array_equal(model(x), answer)

    head, fitted = {"head:head/kernel", "head:head/bias"}, {n for n in named(model) if "lora_" in n}
    assert len(fitted) == (2 * 6 if kind == "text" else 2 * 2)
    # A frozen phase between: opened again, Keras would let the kernels learn too.
    assert train(model, x, "head") == head
    assert train(model, x, f"{layers}|head") == fitted | head


def test_biases_learn_where_that_is_asked_for():
    model = adapters.add_lora(images(), "body/conv_1", rank=1, biases=True)
    adapters.add_lora(model, "body/conv_2", rank=1)
    assert train(model, IMAGES, "body/conv_.*") == {
        "body/conv_1:conv_1/bias",
        "body/conv_1:conv_1/lora_kernel_a",
        "body/conv_1:conv_1/lora_kernel_b",
        "body/conv_2:conv_2/lora_kernel_a",
        "body/conv_2:conv_2/lora_kernel_b",
    }


def test_a_phase_says_what_learns_and_what_is_fixed_in_an_adapted_layer():
    model = adapters.add_lora(images(), "body/conv_1", rank=2)
    frozen = freezing.freeze(model, "body/conv_1|head")
    assert list(frozen.trainable) == ["body/conv_1", "head"]
    assert [variable.name for variable in frozen.learning["body/conv_1"]] == [
        "lora_kernel_a",
        "lora_kernel_b",
    ]
    assert frozen.statistics == {}
    assert frozen.parameters == (3 * 3 * 3 * 2 + 2 * 4) + (6 * 3 + 3)


@pytest.mark.parametrize("kind", MODELS)
def test_merged_kernels_are_the_sum_and_answer_alike(kind):
    build, x, layers = MODELS[kind]
    model = adapters.add_lora(build(), layers, rank=2)
    train(model, x, f"{layers}|head")
    before = values(model)
    expected = model(x)
    with adapters.merged(model):
        inside = values(model)
        np.testing.assert_array_equal(model(x), expected)
    assert inside.keys() == {name for name in before if "lora_" not in name}
    for name, value in inside.items():
        parent, _, own = name.rpartition("/")
        low = before.get(f"{parent}/lora_{own}_a"), before.get(f"{parent}/lora_{own}_b")
        if low[0] is None:
            np.testing.assert_array_equal(value, before[name])
        else:
            assert np.abs(value - before[name]).max() > 1e-3
            product = np.tensordot(low[0].astype(np.float64), low[1], axes=1)
            np.testing.assert_allclose(value, before[name] + product, atol=1e-6)


@pytest.mark.parametrize("trainable", ["body/conv_.*", "head"])
def test_after_merging_the_model_is_what_it_was(trainable):
    model = adapters.add_lora(images(), "body/conv_.*", rank=2)
    train(model, IMAGES, "body/conv_.*")
    freezing.freeze(model, trainable)
    before, flags = values(model), [variable.trainable for variable in model.weights]
    order = list(map(id, model.weights))
    traced = tf.function(model)
    answer = traced(IMAGES)

    with pytest.raises(KeyboardInterrupt), adapters.merged(model):
        raise KeyboardInterrupt

    assert list(map(id, model.weights)) == order
    assert [variable.trainable for variable in model.weights] == flags
    np.testing.assert_array_equal(traced(IMAGES), answer)
    for name, value in values(model).items():
        np.testing.assert_array_equal(value, before[name])
    # They learn on, though they were merged while they were frozen.
    fitted = {name for name in before if "lora_" in name}
    assert train(model, IMAGES, "body/conv_.*") == fitted
    for value in (False, True):  # as Keras sets them itself
        model.trainable = value
        assert {named(model)[name].trainable for name in fitted} == {value}


def test_a_model_that_is_saved_merged_has_no_adapters_and_fits_an_adapted_one(tmp_path):
    model = adapters.add_lora(images(), "body/conv_.*", rank=2)
    train(model, IMAGES, ".*conv_.*|head")
    with adapters.merged(model):
        model.save(tmp_path / "model.keras")

    loaded = keras.models.load_model(tmp_path / "model.keras", compile=False)
    np.testing.assert_allclose(loaded(IMAGES), model(IMAGES), atol=1e-6)
    assert len(loaded.weights) == len(images().weights)
    adapters.add_lora(loaded, "body/conv_1", rank=1)

    again = adapters.add_lora(images(), "body/conv_.*", rank=2)
    again.load_weights(tmp_path / "model.keras")
    np.testing.assert_allclose(again(IMAGES), model(IMAGES), atol=1e-6)


def test_a_kernel_is_merged_in_its_own_precision():
    layer = keras.layers.Dense(3, dtype="mixed_bfloat16", name="dense")
    model = keras.Sequential([keras.Input((4,)), layer])
    kernel = layer.kernel.numpy()
    adapters.add_lora(model, "dense", rank=1)
    layer.lora_kernel_b.assign(np.full((1, 3), 0.01))
    expected = kernel + layer.lora_kernel_a.numpy() @ layer.lora_kernel_b.numpy()
    with adapters.merged(model):
        np.testing.assert_allclose(layer.kernel.numpy(), expected, atol=1e-7)
    np.testing.assert_array_equal(layer._kernel.numpy(), kernel)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": "body/conv_.*", "rank": 0}, "`rank` must be a whole number of at least 1"),
        ({"layers": "body/conv_.*", "rank": 1.5}, r"`rank` must be .*\. Received: 1\.5\."),
        ({"layers": "conv_.*", "rank": 1}, r"(?s)`layers` must match.*\n - body/conv_1\n"),
        ({"layers": "body/(", "rank": 1}, "`layers` must be a regular expression"),
        ({"layers": "body/.*", "rank": 1}, r"Keras can adapt.*Received: \['body/norm'\]"),
    ],
)
def test_what_cannot_be_adapted_is_named_and_nothing_has_changed(settings, message):
    model = images()
    with pytest.raises(UserError, match=message):
        adapters.add_lora(model, **settings)
    assert not any("lora_" in name for name in named(model))


def test_adapters_are_added_once():
    model = adapters.add_lora(images(), "body/conv_1", rank=1)
    with pytest.raises(UserError, match=r"adapters already. Received: \['body/conv_1'\]"):
        adapters.add_lora(model, "body/conv_.*", rank=1)
    assert sum("lora_" in name for name in named(model)) == 2


@pytest.mark.parametrize(
    "layer",
    [
        keras.layers.Dense(4, kernel_constraint="max_norm"),
        keras.layers.LSTM(4),
        keras.layers.DepthwiseConv1D(2),
    ],
)
def test_layers_that_keras_cannot_adapt_are_refused(layer):
    model = keras.Sequential([keras.Input((5, 3)), layer])
    with pytest.raises(UserError, match=f"Keras can adapt.*{layer.name}"):
        adapters.add_lora(model, ".*", rank=1)


def test_adapters_go_into_some_parts_of_a_layer_alone():
    model = text()
    adapters.add_lora(model, "attention/(query|value)", rank=1)
    attention = model.get_layer("attention")
    having = [layer.name for layer in keras_graph.all_layers(attention) if adapters.adapted(layer)]
    assert sorted(having) == ["query", "value"]
    assert train(model, TOKENS, "attention/(query|value)")
