import keras
import models
import numpy as np
import pytest
import tensorflow as tf

from tfbp.caching.prefix import find
from tfbp.modeling import adapters, freezing, heads
from tfbp.training import optimizer
from tfbp.training.phase import Phase

layers = keras.layers
NUMBERS = np.random.default_rng(0)
IMAGES = NUMBERS.uniform(0, 255, (12, 8, 8, 3)).astype(np.float32)
ROWS = NUMBERS.normal(0, 1, (12, 5)).astype(np.float32)
TOKENS = NUMBERS.integers(0, 7, (12, 6))
Y = np.arange(12) % 3


def classified(x, features):
    return keras.Model(x, layers.Dense(3, name="head")(features))


def learn(model, trainable, x, batch_norm="frozen", cached=False):
    """Takes four steps of Adam on the examples or on their features.

    Returns the prefix, and the values of all variables there are.
    """
    y = Y[: len(keras.tree.flatten(x)[0])]
    frozen = freezing.freeze(model, trainable, batch_norm)
    phase = Phase("fit", trainable, epochs=2, learning_rate=0.01, batch_norm=batch_norm)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(
        optimizer.build(phase, 4, frozen), loss=loss, metrics=["accuracy"], auto_scale_loss=False
    )
    model.optimizer.build(model.trainable_variables)
    model.compute_metrics(x, y, model(x, training=False))
    model.reset_metrics()
    learner, prefix = model, None
    if cached:
        prefix = find(model, frozen)
        x = prefix.features(x, training=False)
        learner = prefix.training_model(model)

    @tf.function
    def step(rows):
        data = keras.tree.map_structure(lambda each: tf.gather(each, rows), (x, y))
        with model.optimizer.weighing(tf.constant(1.0)):
            learner.train_step((*data, tf.ones(tf.shape(rows))))

    for rows in np.split(np.arange(2 * len(y)) % len(y), 4):
        step(tf.constant(rows))
    state = model.variables + model.optimizer.variables + model.metrics_variables
    return prefix, [variable.numpy() for variable in state]


def assert_trains_alike(model, trainable, x, batch_norm="frozen"):
    """Asserts that training on features ends as training on examples does; returns the prefix."""
    begin = [variable.numpy() for variable in model.variables]
    _, expected = learn(model, trainable, x, batch_norm)
    assert any((a != b).any() for a, b in zip(begin, expected, strict=False))
    nodes = [len(layer._inbound_nodes) for layer in model._flatten_layers()]
    for variable, value in zip(model.variables, begin, strict=True):
        variable.assign(value)
    prefix, found = learn(model, trainable, x, batch_norm, cached=True)
    for one, other in zip(expected, found, strict=True):
        if not np.array_equal(one, other):  # which is much faster, of millions of weights
            np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)
    assert nodes == [len(layer._inbound_nodes) for layer in model._flatten_layers()]
    answers = model(x, training=False)
    rest = prefix.rest(prefix.features(x, training=False), training=False)
    keras.tree.assert_same_structure(answers, rest)
    for one, other in zip(keras.tree.flatten(answers), keras.tree.flatten(rest), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    rows = prefix.features(x, training=False)
    assert [(row.shape[1:], row.dtype) for row in rows] == [
        (spec.shape, spec.dtype) for spec in prefix.specs
    ]
    assert prefix.bytes == sum(np.asarray(row[0]).nbytes for row in rows)
    assert [id(v) for v in prefix.rest.trainable_variables] == [
        id(v) for v in model.trainable_variables
    ]
    return prefix


def shapes(prefix):
    return sorted(tuple(spec.shape) for spec in prefix.specs)


@pytest.fixture(scope="module")
def vgg16():
    keras.utils.set_random_seed(1)
    backbone = keras.applications.VGG16(weights=None, include_top=False, input_shape=(32, 32, 3))
    return heads.swap_head(backbone, 3, hidden=(8,), dropout=0.5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("block", "trainable", "shape"),
    [
        (6, "head.*", (512,)),
        (5, "vgg16/block5_.*|head.*", (2, 2, 512)),
        (4, "vgg16/block[45]_.*|head.*", (4, 4, 256)),
        (3, "vgg16/block[345]_.*|head.*", (8, 8, 128)),
        (2, "vgg16/block[2345]_.*|head.*", (16, 16, 64)),
    ],
)
def test_vgg16_is_cut_at_every_block(vgg16, block, trainable, shape):
    x = NUMBERS.uniform(0, 255, (4, 32, 32, 3)).astype(np.float32)
    prefix = assert_trains_alike(vgg16, trainable, x)
    inside = {f"vgg16/block{n}_{kind}" for n in range(1, block) for kind in convolutions(n)}
    assert set(prefix.layers) == inside | ({"pool"} if block == 6 else set())
    assert shapes(prefix) == [shape]
    # 3x3 kernels over each pixel of a block, whose sides are halved from block to block.
    sides, widths = [32, 16, 8, 4, 2], [3, 64, 128, 256, 512, 512]
    work = [
        9 * side**2 * (low * high + (len(convolutions(n)) - 2) * high**2)
        for n, (side, low, high) in enumerate(
            zip(sides, widths[:-1], widths[1:], strict=True), start=1
        )
    ]
    head = 512 * 8 + 8 * 3
    assert prefix.saves == pytest.approx(sum(work[: block - 1]) / (sum(work) + head))


def convolutions(block):
    return [f"conv{n}" for n in range(1, 3 if block < 3 else 4)] + ["pool"]


def residual():
    x = pixels = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, padding="same", name="stem")(x)
    for number in (1, 2, 3):
        y = layers.BatchNormalization(name=f"block{number}_norm")(x)
        y = layers.ReLU(name=f"block{number}_relu")(y)
        y = layers.Conv2D(4, 3, padding="same", name=f"block{number}_conv")(y)
        x = layers.Add(name=f"block{number}_add")([x, y])
    backbone = keras.Model(pixels, x, name="body")
    return models.classifier(backbone)


@pytest.mark.parametrize(
    ("batch_norm", "expected"),
    # In inference mode the normalization is inside: its answer is read, and the sum before it.
    [
        ("frozen", [(8, 8, 4), (8, 8, 4)]),
        ("affine", [(8, 8, 4)]),
        ("train", [(8, 8, 4)]),
    ],
)
def test_residual_blocks_are_cut_at_every_tensor_that_the_rest_reads(batch_norm, expected):
    prefix = assert_trains_alike(residual(), "body/block3_.*|head", IMAGES, batch_norm)
    assert shapes(prefix) == expected
    assert ("body/block3_norm" in prefix.layers) == (batch_norm == "frozen")
    assert {"body/stem", "body/block1_add", "body/block2_norm", "body/block2_add"} <= set(
        prefix.layers
    )
    assert "body/block3_add" not in prefix.layers


@pytest.mark.parametrize("trainable", ["head", "body/dense_3|head", "body/dense_[23]|head"])
def test_densely_connected_layers_are_cut_where_one_learns(trainable):
    x = rows = keras.Input((5,))
    for number in (1, 2, 3):
        y = layers.Dense(4, "relu", name=f"dense_{number}")(x)
        x = layers.Concatenate(name=f"join_{number}")([x, y])
    backbone = keras.Model(rows, x, name="body")
    rows = keras.Input((5,))
    prefix = assert_trains_alike(classified(rows, backbone(rows)), trainable, ROWS)
    learning = trainable.count("3") + trainable.count("2")
    assert shapes(prefix) == [(5 + 4 * (3 - learning),)]


def test_each_of_several_inputs_is_followed_as_far_as_it_is_frozen():
    image, row = keras.Input((8, 8, 3), name="image"), keras.Input((5,), name="row")
    x = layers.GlobalAveragePooling2D()(models.backbone()(image))
    y = layers.Dense(4, "tanh", name="rows")(row)
    both = layers.Concatenate()([x, y])
    model = keras.Model({"image": image, "row": row}, layers.Dense(3, name="head")(both))
    x = {"image": IMAGES, "row": ROWS}
    # Of the image its features; of the row that a learning layer reads, the row.
    assert shapes(assert_trains_alike(model, "rows|head", x)) == [(5,), (6,)]
    assert shapes(assert_trains_alike(model, "head", x)) == [(10,)]


def test_models_nested_two_deep_are_opened_sequential_ones_too():
    inner = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(4, 3, strides=2, name="one"),
            layers.Conv2D(4, 3, name="two"),
        ],
        name="inner",
    )
    x = pixels = keras.Input((8, 8, 3))
    outer = keras.Model(pixels, layers.Conv2D(2, 1, name="three")(inner(x)), name="outer")
    model = keras.Sequential([keras.Input((8, 8, 3)), outer, layers.Flatten(name="flat")])
    model.add(layers.Dense(3, name="head"))
    prefix = assert_trains_alike(model, "outer/inner/two|outer/three|head", IMAGES)
    assert prefix.layers == ("outer/inner/one",)
    prefix = assert_trains_alike(model, "head", IMAGES)
    assert prefix.layers == ("outer/inner/one", "outer/inner/two", "outer/three", "flat")


@pytest.mark.parametrize(
    ("batch_norm", "expected"),
    [
        ("frozen", {"body/rescaling", "body/conv_1", "body/norm"}),
        ("affine", {"body/rescaling", "body/conv_1"}),
        ("train", {"body/rescaling", "body/conv_1"}),
    ],
)
def test_normalization_is_inside_only_while_nothing_of_it_changes(batch_norm, expected):
    keras.backend.clear_session()
    prefix = assert_trains_alike(
        models.classifier(models.backbone()), "body/norm|body/conv_2|head", IMAGES, batch_norm
    )
    assert set(prefix.layers) == expected


def test_dropout_inside_a_frozen_backbone_ends_the_prefix_and_draws_the_same_masks():
    backbone = models.backbone(layers.Dropout(0.5, name="drop"))
    prefix = assert_trains_alike(models.classifier(backbone, layers.Dropout(0.3)), "head", IMAGES)
    assert "body/norm" in prefix.layers
    assert not {"body/drop", "body/conv_2", "pool"} & set(prefix.layers)
    # One that drops nothing does not.
    prefix = assert_trains_alike(
        models.classifier(models.backbone(layers.Dropout(0.0))), "head", IMAGES
    )
    assert {"body/conv_2", "pool"} <= set(prefix.layers)


def test_what_an_augmentation_in_the_model_touches_is_not_in_the_prefix():
    augmented, plain = keras.Input((8, 8, 3)), keras.Input((8, 8, 3))
    backbone = models.backbone()
    x = layers.RandomFlip(name="flip")(augmented)
    x = layers.Concatenate()([backbone(x), backbone(plain)])
    x = layers.GlobalAveragePooling2D()(x)
    model = classified([augmented, plain], x)
    prefix = assert_trains_alike(model, "head", [IMAGES, IMAGES[::-1]])
    # The backbone, called twice, answers to one of the two images alone: no layer is all inside.
    assert prefix.layers == ()
    assert shapes(prefix) == [(4, 4, 6), (8, 8, 3)]
    assert 0 < prefix.saves < 0.5
    x = pixels = keras.Input((8, 8, 3))
    x = layers.GlobalAveragePooling2D()(models.backbone()(layers.RandomFlip()(x)))
    model = classified(pixels, x)
    assert find(model, freezing.freeze(model, "head")) is None


def test_adapters_end_the_prefix_where_they_are():
    model = adapters.add_lora(models.classifier(models.backbone()), "body/conv_2", rank=2)
    prefix = assert_trains_alike(model, "body/conv_2|head", IMAGES)
    assert "body/norm" in prefix.layers and "body/conv_2" not in prefix.layers
    prefix = assert_trains_alike(model, "head", IMAGES)  # frozen, they are part of it
    assert "body/conv_2" in prefix.layers


def test_a_layer_at_two_places_is_judged_at_each_and_a_tensor_read_twice_is_kept_once():
    rows = keras.Input((5,))
    shared = layers.Dense(5, "tanh", name="shared")
    once = shared(rows)
    learning = layers.Dense(5, name="middle")(once)
    twice = shared(layers.Add()([learning, once]))
    model = classified(rows, layers.Concatenate()([twice, once]))
    prefix = assert_trains_alike(model, "middle|head", ROWS)
    assert prefix.layers == ()
    assert shapes(prefix) == [(5,)]
    assert prefix.saves == pytest.approx(25 / (25 * 3 + 30))


def test_outputs_that_are_frozen_pass_through_in_the_models_own_structure():
    rows = keras.Input((5,))
    x = layers.Dense(4, "tanh", name="frozen")(rows)
    outputs = {"features": x, "logits": layers.Dense(3, name="head")(x), "rows": rows}
    model = keras.Model(rows, outputs)
    frozen = freezing.freeze(model, "head")
    prefix = find(model, frozen)
    assert shapes(prefix) == [(4,), (5,)]
    answers = prefix.rest(prefix.features(ROWS))
    assert answers.keys() == outputs.keys()
    for name, value in model(ROWS).items():
        np.testing.assert_array_equal(answers[name], value)


def test_a_mask_is_not_lost_at_the_cut():
    tokens = keras.Input((6,), dtype="int32")
    x = layers.Embedding(7, 4, mask_zero=True, name="embedding")(tokens)
    x = layers.Dense(5, "tanh", name="dense")(x)
    model = classified(tokens, layers.LSTM(4, name="lstm")(x))
    # All before the LSTM carries the mask: nothing of it can be kept.
    assert find(model, freezing.freeze(model, "lstm|head")) is None
    prefix = assert_trains_alike(model, "head", TOKENS)
    assert shapes(prefix) == [(4,)]
    # Kernels over six steps each, and the head's.
    assert prefix.saves == pytest.approx(6 * (20 + 144) / (6 * (20 + 144) + 12))


def test_a_mask_that_a_nested_model_made_reaches_the_layers_behind_it():
    inside = keras.Input((6,), dtype="int32")
    x = layers.Embedding(7, 4, mask_zero=True, name="embedding")(inside)
    nested = keras.Model(inside, layers.Dense(5, "tanh", name="dense")(x), name="nested")
    tokens = keras.Input((6,), dtype="int32")
    x = layers.LSTM(4, return_sequences=True, name="masked")(nested(tokens))
    x = layers.GlobalAveragePooling1D(name="mean")(x)
    model = classified(tokens, x)
    prefix = assert_trains_alike(model, "head", TOKENS)
    assert shapes(prefix) == [(4,)]


class Positions(layers.Layer):
    """Returns 0 to 4, whatever it is given: nothing of an example."""

    def call(self, x):
        return tf.range(5, dtype=tf.float32)


def test_what_is_no_row_of_an_example_is_made_again_by_the_rest():
    rows = keras.Input((5,))
    x = layers.Dense(5, "tanh", name="frozen")(rows)
    x = layers.Add()([layers.Dropout(0.5)(x), Positions(name="positions")(x)])
    prefix = assert_trains_alike(classified(rows, x), "head", ROWS)
    assert prefix.layers == ("frozen",)
    assert shapes(prefix) == [(5,)]


def test_what_reads_from_the_rest_belongs_to_it():
    tokens = keras.Input((6,), dtype="int32")
    x = layers.Embedding(7, 4, mask_zero=True, name="embedding")(tokens)
    both = [layers.LSTM(5, name="frozen")(x), layers.LSTM(4, name="head_lstm")(x)]
    model = classified(tokens, layers.Concatenate()(both))
    assert find(model, freezing.freeze(model, "head.*")) is None

    rows = keras.Input((5,))
    x = layers.Dense(5, "tanh", name="first")(rows)
    positions = Positions(name="positions")(x)
    frozen = layers.Dense(5, "tanh", name="second")(layers.Add()([x, positions]))
    learns = layers.Add()([layers.Dense(5, "tanh", name="head_dense")(x), positions])
    model = classified(rows, layers.Concatenate()([frozen, learns]))
    prefix = assert_trains_alike(model, "head.*", ROWS)
    assert prefix.layers == ("first",)


class Sparse(layers.Layer):
    def call(self, x):
        return tf.sparse.from_dense(x)

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape, x.dtype, sparse=True)


def test_a_sparse_tensor_is_left_to_the_rest():
    rows = keras.Input((5,))
    x = Sparse(name="sparse")(layers.Dense(4, "relu", name="frozen")(rows))
    prefix = assert_trains_alike(classified(rows, x), "head", ROWS)
    assert prefix.layers == ("frozen",)
    assert shapes(prefix) == [(4,)]


def test_half_precision_goes_through_the_cut_as_it_is():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = models.classifier(models.backbone())
        prefix = assert_trains_alike(model, "head", IMAGES)
    finally:
        keras.config.set_dtype_policy("float32")
    assert [spec.dtype for spec in prefix.specs] == [tf.bfloat16]


def test_penalties_of_what_learns_count_and_a_penalty_on_frozen_activations_ends_the_prefix():
    rows = keras.Input((5,))
    x = layers.Dense(4, "tanh", name="first")(rows)
    x = layers.Dense(4, "tanh", name="second", activity_regularizer="l2")(x)
    x = layers.Dense(4, "tanh", name="third", kernel_regularizer="l2")(x)
    prefix = assert_trains_alike(classified(rows, x), "third|head", ROWS)
    assert prefix.layers == ("first",)


class Centred(layers.Layer):
    def call(self, x):
        return x - tf.reduce_mean(x, axis=0, keepdims=True)


def test_where_an_example_is_answered_by_its_batch_nothing_is_cached():
    rows = keras.Input((5,))
    x = Centred()(layers.Dense(4, name="frozen")(rows))
    model = classified(rows, layers.Dense(4, name="second")(x))
    assert find(model, freezing.freeze(model, "head")) is None


class Own(keras.Model):
    """Adds the size of the inputs to the loss."""

    def compute_loss(self, x=None, **settings):
        return super().compute_loss(x=x, **settings) + tf.reduce_mean(x)


class Steps(keras.Model):
    def train_step(self, data):
        return super().train_step(data)


class Calls(keras.Model):
    def __init__(self):
        super().__init__()
        self.frozen, self.head = layers.Dense(4, name="frozen"), layers.Dense(3, name="head")

    def call(self, x):
        return self.head(self.frozen(x))


def dense(kind=keras.Model, **settings):
    rows = keras.Input(**{"shape": (5,)} | settings)
    x = layers.Dense(4, "tanh", name="frozen")(rows)
    return kind(rows, layers.Dense(3, name="head")(x))


def test_a_model_with_a_step_a_loss_or_a_call_of_its_own_is_left_whole():
    calls = Calls()
    calls(ROWS)
    for model in (calls, dense(Own), dense(Steps)):
        assert find(model, freezing.freeze(model, "head")) is None
    plain = dense()
    assert find(plain, freezing.freeze(plain, "head")).layers == ("frozen",)


def test_there_is_no_prefix_where_nothing_would_be_saved():
    tokens = keras.Input((6,), dtype="int32")
    looked_up = classified(tokens, layers.Flatten()(layers.Embedding(7, 4, name="embed")(tokens)))
    rows = keras.Input((5,))
    scaled = classified(rows, layers.Rescaling(2.0)(rows))
    for model in (looked_up, scaled, dense(shape=(None, 5)), dense(shape=None, batch_shape=(4, 5))):
        assert find(model, freezing.freeze(model, "head")) is None
    model = dense()
    assert find(model, freezing.freeze(model, "frozen|head")) is None


def test_a_layer_of_many_inside_a_subclassed_model_is_taken_as_one():
    inner = Calls()
    rows = keras.Input((5,))
    model = classified(rows, inner(rows))
    assert shapes(assert_trains_alike(model, "head", ROWS)) == [(3,)]
    assert find(model, freezing.freeze(model, ".*frozen|head")) is None


def test_a_prefix_goes_on_from_one_that_it_contains():
    keras.utils.set_random_seed(1)
    model = models.classifier(models.backbone())
    longer = find(model, freezing.freeze(model, "head"))
    shorter = find(model, freezing.freeze(model, "head|body/conv_2"))
    assert longer.contains(shorter)
    assert not shorter.contains(longer)
    between = longer.beyond(shorter)
    rows = between(shorter.features(IMAGES, training=False), training=False)
    expected = longer.features(IMAGES, training=False)
    for one, other in zip(rows, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)
    assert (shorter.cut, longer.cut) == (("body/norm",), ("pool",))
    assert 0 < shorter.multiply_adds < longer.multiply_adds
