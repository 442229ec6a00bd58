import keras
import models
import pytest

import tfbp
from tfbp.errors import UserError
from tfbp.modeling import tops

layers = keras.layers
SMALL = {"weights": None, "input_shape": (32, 32, 3), "classes": 7}


def features(*more, width=9):
    """Returns images → a Dense layer and what is given."""
    flat = [layers.Flatten(), layers.Dense(width, "relu", name="code")]
    return models.chain((8, 8, 3), *flat, *more, name="net")


@pytest.mark.parametrize(
    ("top", "name"),
    [
        (lambda: [layers.Dense(5, activation="softmax", name="old")], "old"),
        (lambda: [layers.Dense(5), layers.Softmax(name="soft")], "soft"),
        (lambda: [layers.Dense(5), layers.Activation("softmax", name="act")], "act"),
        (lambda: [layers.Dense(1, activation="sigmoid", name="one")], "one"),
        (lambda: [layers.Dense(5, name="predictions")], "predictions"),
    ],
)
def test_a_backbone_that_still_has_its_classifier_is_refused(top, name):
    whole = features(*top())
    assert tops.top_of(whole).name == name
    nested = models.chain((8, 8, 3), whole, name="outer")
    assert tops.top_of(nested).name == name
    sequence = keras.Sequential([keras.Input((8, 8, 3)), layers.Flatten(), *top()])
    assert tops.top_of(sequence).name == name
    for backbone in (whole, nested, sequence):
        with pytest.raises(UserError, match=f"ends with '{name}'. Cut it before its top"):
            tfbp.swap_head(backbone, 2, preprocess=None)


def test_the_way_out_is_one():
    whole = features(layers.Dense(5, activation="softmax", name="old"))
    with pytest.raises(UserError, match=r"`keras.Model\(backbone.input, .*'code'\).output\)`"):
        tfbp.swap_head(whole, 2, preprocess=None)
    cut = keras.Model(whole.input, whole.get_layer("code").output)
    assert tfbp.swap_head(cut, 2, preprocess=None).output_shape == (None, 2)


@pytest.mark.parametrize("activation", ["softmax", None])
@pytest.mark.parametrize(
    "build",
    [
        keras.applications.VGG16,
        keras.applications.MobileNetV2,
        keras.applications.MobileNetV3Small,
        keras.applications.EfficientNetB0,
        keras.applications.DenseNet121,
        keras.applications.ConvNeXtTiny,
    ],
)
def test_the_tops_of_keras_applications_are_known_with_softmax_and_without(build, activation):
    whole = build(include_top=True, classifier_activation=activation, **SMALL)
    assert tops.top_of(whole) is not None


def test_features_are_no_classifier():
    for backbone in (
        features(),
        features(layers.Dense(4, activation="tanh")),
        features(layers.Dense(4, activation="sigmoid")),
        models.backbone(),
        keras.applications.MobileNetV2(
            include_top=False, weights=None, input_shape=(32, 32, 3), pooling="avg", alpha=0.35
        ),
    ):
        assert tops.top_of(backbone) is None
        tfbp.swap_head(backbone, 2, preprocess=None)
