import keras
import models
import numpy as np
import pytest

from tfbp.errors import UserError
from tfbp.modeling import freezing, paths

X = np.random.default_rng(0).uniform(0, 1, (12, 8, 8, 3)).astype(np.float32)
Y = np.arange(12) % 3


def nested():
    """Returns image → scaling → `body` (convolutions with batch normalization) → `head`."""
    scale = keras.layers.Normalization(name="scale")
    scale.adapt(X)
    model = models.classifier(models.blocks(4, 4))
    return models.chain((8, 8, 3), scale, *model.layers[1:])


def changed(model, trainable, batch_norm="frozen"):
    """Freezes, trains with Keras's own fit, and returns the names of the variables that changed."""
    freezing.freeze(model, trainable, batch_norm)
    variables = {
        f"{path}/{variable.name}": variable
        for path, layer in paths.with_weights(model).items()
        for variable in layer.weights
    }
    before = {name: variable.numpy() for name, variable in variables.items()}
    model.compile(
        keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    model.fit(X, Y, batch_size=4, verbose=0)
    return {name for name, value in before.items() if (variables[name].numpy() != value).any()}


CONV_2, HEAD = {"body/conv_2/kernel", "body/conv_2/bias"}, {"head/kernel", "head/bias"}
LEARNT_2 = {"body/norm_2/gamma", "body/norm_2/beta"}
MOVED_2 = {"body/norm_2/moving_mean", "body/norm_2/moving_variance"}


@pytest.mark.parametrize(
    ("trainable", "batch_norm", "expected"),
    [
        ("head", "frozen", HEAD),
        ("body/.*_2|head", "frozen", CONV_2 | HEAD),
        ("body/.*_2|head", "train", CONV_2 | LEARNT_2 | MOVED_2 | HEAD),
        ("body/.*_2|head", "affine", CONV_2 | LEARNT_2 | HEAD),
        ("body/norm_2", "affine", LEARNT_2),
        ("body/conv_2", "train", CONV_2),
    ],
)
def test_exactly_what_the_pattern_names_changes_in_training(trainable, batch_norm, expected):
    # Before a BatchNormalization that uses batch statistics a bias has no gradient but rounding.
    assert changed(nested(), trainable, batch_norm) - {"body/conv_2/bias"} == (
        expected - {"body/conv_2/bias"}
    )


def test_a_later_phase_opens_and_closes_again():
    model = nested()
    assert changed(model, "head") == HEAD
    assert changed(model, "body/conv_2") == CONV_2
    assert changed(model, "head") == HEAD


def test_what_was_frozen_by_the_user_as_a_whole_can_be_opened():
    model = nested()
    model.get_layer("body").trainable = False
    assert changed(model, "body/conv_2") == CONV_2


def test_it_says_what_is_trainable_what_moves_and_what_is_frozen():
    model = nested()
    frozen = freezing.freeze(model, "body/.*_2|head")
    assert list(frozen.trainable) == ["body/conv_2", "head"]
    assert frozen.statistics == {}
    assert set(frozen.frozen) == {"scale", "body/conv_1", "body/norm_1", "body/norm_2"}
    assert frozen.parameters == (3 * 3 * 4 * 4 + 4) + (4 * 3 + 3)
    assert frozen.parameters == sum(v.numpy().size for v in model.trainable_variables)

    opened = freezing.freeze(model, "body/.*_2|head", batch_norm="train")
    assert list(opened.trainable) == ["body/conv_2", "body/norm_2", "head"]
    norm = model.get_layer("body").get_layer("norm_2")
    moving = {path: list(map(id, each)) for path, each in opened.statistics.items()}
    assert moving == {"body/norm_2": [id(norm.moving_mean), id(norm.moving_variance)]}
    assert opened.parameters == frozen.parameters + 2 * 4

    affine = freezing.freeze(model, "body/.*_2|head", batch_norm="affine")
    assert list(affine.trainable) == ["body/conv_2", "body/norm_2", "head"]
    assert list(map(id, affine.learning["body/norm_2"])) == [id(norm.gamma), id(norm.beta)]
    assert affine.statistics == {}
    assert affine.parameters == opened.parameters


@pytest.mark.parametrize("batch_norm", ["frozen", "affine", "train"])
def test_each_weight_learns_moves_or_stays(batch_norm):
    model = nested()
    frozen = freezing.freeze(model, "body/.*_2|head", batch_norm)
    groups = [*frozen.learning.values(), *frozen.statistics.values(), frozen.fixed]
    divided = sorted(id(variable) for group in groups for variable in group)
    assert divided == sorted(map(id, model.weights))
    # Of a layer that trains, BatchNormalization's four, its statistics, or none.
    stay = {variable.name for variable in frozen.fixed if "_2" in variable.path}
    norm = {"frozen": {"gamma", "beta"}, "affine": set(), "train": set()}[batch_norm]
    moving = set() if batch_norm == "train" else {"moving_mean", "moving_variance"}
    assert stay == norm | moving


@pytest.mark.parametrize("batch_norm", ["frozen", "affine", "train"])
def test_batch_statistics_are_used_only_where_they_are_trained(batch_norm):
    model = nested()
    freezing.freeze(model, "body/.*|head", batch_norm)
    for name in ("norm_1", "norm_2"):
        model.get_layer("body").get_layer(name).moving_mean.assign([5.0] * 4)
    inference, training = model(X, training=False), model(X, training=True)
    assert np.allclose(inference, training, atol=1e-4) == (batch_norm != "train")


@pytest.mark.parametrize(
    ("batch_norm", "expected"),
    [
        ("frozen", {"kernel", "bias"}),
        ("affine", {"kernel", "bias", "gamma", "beta"}),
        ("train", {"kernel", "bias", "gamma", "beta", "moving_mean", "moving_variance"}),
    ],
)
def test_normalization_inside_a_layer_of_layers_follows_the_same_rule(batch_norm, expected):
    class Block(keras.layers.Layer):
        def __init__(self, name):
            super().__init__(name=name)
            self.convolution = keras.layers.Conv2D(4, 3)
            self.norm = keras.layers.BatchNormalization()

        def build(self, shape):
            self.convolution.build(shape)
            self.norm.build(self.convolution.compute_output_shape(shape))

        def call(self, x, training=None):
            return keras.ops.relu(self.norm(self.convolution(x), training=training))

    images = keras.Input((8, 8, 3))
    x = keras.layers.GlobalAveragePooling2D()(Block("block")(images))
    model = keras.Model(images, keras.layers.Dense(3, name="head")(x))
    names = {name.rpartition("/")[2] for name in changed(model, "block", batch_norm)}
    assert names | {"bias"} == expected


@pytest.mark.parametrize(
    ("trainable", "batch_norm"),
    [("body/norm_.*", "frozen"), ("scale", "frozen"), ("scale", "train")],
)
def test_a_pattern_that_matches_only_what_cannot_learn_is_refused(trainable, batch_norm):
    with pytest.raises(UserError, match="`trainable` must match a layer that can learn") as caught:
        freezing.freeze(nested(), trainable, batch_norm)
    assert repr(trainable) in str(caught.value)


def test_a_pattern_that_matches_nothing_lists_the_paths():
    with pytest.raises(UserError, match=r"(?s)Received: 'block5_.*\n - body/conv_1\n"):
        freezing.freeze(nested(), "block5_.*")


def test_one_part_of_a_layer_that_consists_of_others_learns_alone():
    layers = keras.layers
    attention = layers.MultiHeadAttention(2, 3, name="attention")
    x = rows = keras.Input((5, 4))
    x = layers.GlobalAveragePooling1D()(attention(x, x))
    model = keras.Model(rows, layers.Dense(3, name="head")(x))
    for trainable, learning in (
        ("attention/query|head", ["attention/query", "head"]),
        ("head", ["head"]),
        ("attention", [f"attention/{n}" for n in ("query", "key", "value", "attention_output")]),
    ):
        frozen = freezing.freeze(model, trainable)
        assert sorted(frozen.learning) == sorted(learning)
        assert attention.trainable == ("attention" in trainable)
        expected = [v for path in learning for v in frozen.learning[path]]
        assert {id(v) for v in model.trainable_variables} == {id(v) for v in expected}
        names = [f"{path}/{v.name}" for path in learning for v in frozen.learning[path]]
        before = [value.numpy() for value in expected]
        still = [(v, v.numpy()) for v in frozen.fixed]
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        model.fit(X[:, 0, :5, [0, 1, 2, 0]].transpose(1, 2, 0), Y, verbose=0)
        moved = [(a != b.numpy()).any() for a, b in zip(before, expected, strict=True)]
        # A bias of the keys shifts all scores of a query alike, which the softmax takes out.
        assert all(m for m, name in zip(moved, names, strict=True) if name != "attention/key/bias")
        assert all((value == v.numpy()).all() for v, value in still)
