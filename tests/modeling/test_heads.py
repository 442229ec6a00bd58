import inspect

import keras
import numpy as np
import pytest

from tfbp.errors import UserError
from tfbp.modeling import heads

IMAGES = np.random.default_rng(0).uniform(0, 255, (3, 8, 8, 3)).astype(np.float32)
IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # of RGB, 0 to 1


def echo(name):
    """Returns a backbone whose features are the image that reaches it, plain."""
    images = keras.Input((8, 8, 3))
    return keras.Model(images, keras.layers.Flatten()(images), name=name)


def feature_map(name="backbone"):
    images = keras.Input((8, 8, 3))
    return keras.Model(images, keras.layers.Conv2D(5, 3, name="conv")(images), name=name)


def features(model):
    """Returns the function from images to what the head reads of a model."""
    return keras.Model(model.input, model.get_layer("head").input)


def caffe(x):
    return x[..., ::-1] - np.float32([103.939, 116.779, 123.68])


def tf_like(x):
    return x / 127.5 - 1


def torch_like(x):
    return (x / 255 - np.float32(IMAGENET_MEAN)) / np.float32(IMAGENET_STD)


def unchanged(x):
    return x


@pytest.mark.parametrize(
    ("name", "by_hand"),
    [
        ("vgg16", caffe),
        ("vgg19", caffe),
        ("resnet50", caffe),
        ("resnet152", caffe),
        ("resnet50v2", tf_like),
        ("densenet121", torch_like),
        ("inception_v3", tf_like),
        ("inception_resnet_v2", tf_like),
        ("xception", tf_like),
        ("mobilenet_1.00_224", tf_like),
        ("mobilenetv2_1.00_224", tf_like),
        ("nasnet_mobile", tf_like),
        ("efficientnetb0", unchanged),
        # as they are built with `include_preprocessing=False`:
        ("efficientnetv2-b0", torch_like),
        ("efficientnetv2-s", tf_like),
        ("convnext_tiny", torch_like),
        ("MobileNetV3Small", tf_like),
    ],
)
def test_a_backbone_of_keras_applications_gets_its_own_preprocessing(name, by_hand):
    model = heads.swap_head(echo(name), 2)
    np.testing.assert_allclose(
        features(model).predict_on_batch(IMAGES).reshape(IMAGES.shape),
        by_hand(IMAGES),
        rtol=1e-5,
        atol=1e-4,
    )


@pytest.mark.parametrize("name", ["efficientnetv2-b0", "convnext_tiny", "MobileNetV3Small"])
def test_a_backbone_that_preprocesses_inside_gets_pixels(name):
    inside = keras.Sequential(
        [keras.Input((8, 8, 3)), keras.layers.Rescaling(1 / 255), keras.layers.Flatten()], name=name
    )
    answer = features(heads.swap_head(inside, 2)).predict_on_batch(IMAGES)
    np.testing.assert_allclose(answer.reshape(IMAGES.shape), IMAGES / 255, rtol=1e-5)


@pytest.mark.parametrize("included", [True, False])
def test_mobilenet_itself_says_whether_it_preprocesses_inside(included):
    backbone = keras.applications.MobileNetV3Small(
        include_top=False,
        weights=None,
        input_shape=(32, 32, 3),
        alpha=0.35,
        minimalistic=True,
        include_preprocessing=included,
    )
    assert (heads.preprocessing_of(backbone) is None) is included


def test_every_name_in_keras_applications_is_known():
    found = [
        (name, inspect.signature(function).parameters["name"].default)
        for name, function in inspect.getmembers(keras.applications, inspect.isfunction)
    ]
    # MobileNet and MobileNetV2 make theirs of width and size.
    named = {"MobileNet": "mobilenet_0.50_96", "MobileNetV2": "mobilenetv2_0.35_96"}
    assert len(found) > 30
    for name, default in found:
        heads.swap_head(echo(default or named[name]), 2)


def test_an_unknown_name_asks_for_the_preprocessing_which_can_be_given():
    with pytest.raises(UserError, match=r"`preprocess` must be given .*Received: 'mynet'"):
        heads.swap_head(echo("mynet"), 2)
    plain = heads.swap_head(echo("mynet"), 2, preprocess=None)
    halved = heads.swap_head(echo("vgg16"), 2, preprocess=lambda x: x / 2)
    for model, expected in ((plain, IMAGES), (halved, IMAGES / 2)):
        answer = features(model).predict_on_batch(IMAGES)
        np.testing.assert_allclose(answer.reshape(IMAGES.shape), expected, rtol=1e-6)


def test_preprocessing_is_part_of_the_model_file(tmp_path):
    model = heads.swap_head(echo("resnet50"), 2)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again.predict_on_batch(IMAGES), model.predict_on_batch(IMAGES))


def test_a_feature_map_is_averaged_over_space():
    backbone = feature_map()
    model = heads.swap_head(backbone, 2, preprocess=None)
    expected = backbone.predict_on_batch(IMAGES).mean(axis=(1, 2))
    answer = features(model).predict_on_batch(IMAGES)
    np.testing.assert_allclose(answer, expected, rtol=1e-5, atol=1e-5)


def test_the_head_computes_relu_layers_and_logits_that_start_near_zero():
    model = heads.swap_head(
        feature_map(), ("cat", "dog", "owl"), hidden=(6, 4), dropout=0.5, preprocess=None
    )
    assert [layer.name for layer in model.layers[1:]] == [
        "backbone",
        "pool",
        "head_dropout_1",
        "head_1",
        "head_dropout_2",
        "head_2",
        "head_dropout",
        "head",
    ]
    x = feature_map_output = keras.Model(
        model.input, model.get_layer("pool").output
    ).predict_on_batch(IMAGES)
    assert feature_map_output.shape == (3, 5)
    for name in ("head_1", "head_2"):
        kernel, bias = model.get_layer(name).get_weights()
        x = np.maximum(x @ kernel + bias, 0)
    kernel, bias = model.get_layer("head").get_weights()
    logits = model.predict_on_batch(IMAGES)
    assert logits.shape == (3, 3)
    np.testing.assert_allclose(logits, x @ kernel + bias, rtol=1e-4, atol=1e-5)
    assert 0 < np.abs(kernel).max() < 0.01
    assert not bias.any()


@pytest.mark.parametrize("classes", [3, np.int64(3), ["a", "b", "c"], np.array(["a", "b", "c"])])
def test_classes_are_a_number_or_names(classes):
    assert heads.swap_head(feature_map(), classes, preprocess=None).output_shape == (None, 3)


def test_logits_are_float32_under_a_policy_of_float16():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = heads.swap_head(feature_map(), 2, preprocess=None)
    finally:
        keras.config.set_dtype_policy("float32")
    assert model.get_layer("backbone").output.dtype == "float16"
    assert model.output.dtype == "float32"


def vectors():
    x = keras.Input((8, 8, 3))
    return keras.Model(x, keras.layers.Reshape((64, 3))(x), name="vgg16")


@pytest.mark.parametrize(
    ("backbone", "arguments", "message"),
    [
        (feature_map, {"classes": 1}, "`classes` must be at least 2. Received: 1."),
        (feature_map, {"classes": ["cat"]}, "`classes` must be at least 2"),
        (feature_map, {"dropout": 1.0}, "`dropout` must be at least 0 and below 1"),
        (feature_map, {"dropout": -0.1}, "`dropout` must be at least 0 and below 1"),
        (feature_map, {"hidden": (8, 0)}, "`hidden` must be sizes of at least 1"),
        (feature_map, {"preprocess": "vgg"}, "`preprocess` must be 'auto', a function or None"),
        (vectors, {}, "`backbone` must return features"),
    ],
)
def test_what_cannot_be_a_head_is_refused(backbone, arguments, message):
    with pytest.raises(UserError) as caught:
        heads.swap_head(backbone(), **{"classes": 2, "preprocess": None} | arguments)
    assert message in str(caught.value)
