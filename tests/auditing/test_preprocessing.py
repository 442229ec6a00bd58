import keras
import numpy as np
import pytest

from tfbp import Splits
from tfbp.auditing import preprocessing
from tfbp.modeling import heads

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3)).astype(np.uint8)
DARK, BRIGHT, MIDDLE = PIXELS // 20, 200 + PIXELS // 5, 100 + PIXELS // 8
APPLICATIONS = keras.applications
OUTSIDE = {
    "vgg16": APPLICATIONS.vgg16.preprocess_input,
    "resnet50v2": APPLICATIONS.resnet_v2.preprocess_input,
    "densenet121": APPLICATIONS.densenet.preprocess_input,
}
INSIDE = ("efficientnetb0", "MobileNetV3Small")


def backbone(name, size=16):
    """Returns a small model under a name of keras.applications."""
    images = keras.Input((size, size, 3))
    x = keras.layers.Rescaling(1 / 255)(images) if name in INSIDE else images
    return keras.Model(images, keras.layers.Conv2D(2, 3, name="conv")(x), name=name)


def found(model, x, backbones=()):
    splits = Splits.from_arrays(x, np.arange(len(x)) % 2)
    return list(preprocessing.findings(model, splits, backbones))


def digits():
    """Returns 8 by 8 digits, white on black, grey, scaled up as the recipes do it."""
    from sklearn.datasets import load_digits

    grey = np.round(load_digits().images[:12] * (255 / 16)).astype(np.float32)
    return keras.ops.convert_to_numpy(
        keras.ops.image.resize(np.repeat(grey[..., np.newaxis], 3, axis=-1), (16, 16))
    )


SETS = {
    "all": PIXELS,
    "dark": DARK,
    "bright": BRIGHT,
    "low contrast": MIDDLE,
    "float": PIXELS.astype(np.float32),
    "black": np.zeros_like(PIXELS),
    "digits": digits(),
}


@pytest.mark.parametrize("name", [*OUTSIDE, *INSIDE])
def test_what_swap_head_does_is_right_for_every_set_of_images(name):
    model = heads.swap_head(backbone(name), 2)
    assert {title: found(model, x) for title, x in SETS.items()} == {title: [] for title in SETS}


@pytest.mark.parametrize("name", OUTSIDE)
def test_preprocessing_left_out_is_an_error(name):
    model = heads.swap_head(backbone(name), 2, preprocess=None)
    for x in (PIXELS, DARK, BRIGHT):
        (finding,) = found(model, x)
        assert finding.id == "preprocessing" and not finding.warning
        assert f"The preprocessing for {name!r} is left out" in finding.message
        assert f"reach it as {x.min()} to {x.max()}" in finding.message
        assert "`preprocess_input`" in finding.message


@pytest.mark.parametrize("name", OUTSIDE)
def test_preprocessing_applied_twice_is_an_error(name):
    once = OUTSIDE[name]
    model = heads.swap_head(backbone(name), 2, preprocess=lambda x: once(once(x)))
    for x in (PIXELS, BRIGHT):
        (finding,) = found(model, x)
        assert not finding.warning and f"{name!r} is applied twice" in finding.message


@pytest.mark.parametrize("outside", OUTSIDE.values(), ids=OUTSIDE)
@pytest.mark.parametrize("name", INSIDE)
def test_a_backbone_that_preprocesses_inside_takes_pixels_alone(name, outside):
    (finding,) = found(heads.swap_head(backbone(name), 2, preprocess=outside), PIXELS)
    assert not finding.warning and f"{name!r} is applied twice" in finding.message
    assert "It preprocesses inside" in finding.message


@pytest.mark.parametrize(
    ("name", "given", "kind", "warning"),
    [
        ("vgg16", "resnet50v2", "-1 to 1", False),
        ("vgg16", "densenet121", "mean and deviation", False),
        ("resnet50v2", "vgg16", "mean colour", False),
        ("densenet121", "vgg16", "mean colour", False),
        ("resnet50v2", "densenet121", "mean and deviation", False),
        ("densenet121", "resnet50v2", "-1 to 1", True),  # fits into what was trained on
    ],
)
def test_the_preprocessing_of_another_family_is_named(name, given, kind, warning):
    model = heads.swap_head(backbone(name), 2, preprocess=OUTSIDE[given])
    (finding,) = found(model, PIXELS)
    assert f"{name!r} is of the wrong kind ({kind}" in finding.message
    assert finding.warning is warning


@pytest.mark.parametrize(
    ("name", "warning"), [("vgg16", False), ("resnet50v2", True), ("densenet121", True)]
)
def test_pixels_divided_by_255_are_another_kind(name, warning):
    (finding,) = found(heads.swap_head(backbone(name), 2, preprocess=lambda x: x / 255), PIXELS)
    assert "wrong kind (0 to 1)" in finding.message and finding.warning is warning


@pytest.mark.parametrize("name", [*OUTSIDE, *INSIDE])
def test_float_images_of_0_to_1_are_an_error(name):
    (finding,) = found(heads.swap_head(backbone(name), 2), (PIXELS / 255).astype(np.float32))
    assert not finding.warning
    assert "examples of 0 to 1 reach it" in finding.message
    assert "images of 0 to 255" in finding.message


def test_images_of_0_to_1_that_the_model_brings_back_to_255_are_right():
    once = OUTSIDE["vgg16"]
    model = heads.swap_head(backbone("vgg16"), 2, preprocess=lambda x: once(x * 255))
    assert found(model, (PIXELS / 255).astype(np.float32)) == []


@pytest.mark.parametrize("name", OUTSIDE)
def test_examples_preprocessed_beforehand_are_right_once_and_wrong_twice(name):
    x = OUTSIDE[name](PIXELS.astype(np.float32))
    assert found(heads.swap_head(backbone(name), 2, preprocess=None), x) == []
    (finding,) = found(heads.swap_head(backbone(name), 2), x)
    assert not finding.warning and "no image of 0 to 255, or no longer one" in finding.message


def test_images_that_the_model_resizes_are_judged_by_their_range():
    images = keras.Input((16, 16, 3))
    larger = OUTSIDE["vgg16"](keras.layers.Resizing(24, 24, interpolation="bicubic")(images))
    features = keras.layers.GlobalAveragePooling2D()(backbone("vgg16", size=24)(larger))
    model = keras.Model(images, keras.layers.Dense(2)(features))
    assert [found(model, x) for x in (PIXELS, DARK, BRIGHT)] == [[], [], []]
    (finding,) = found(model, PIXELS / np.float32(255))
    assert "does not fit" in finding.message and not finding.warning


def test_rounding_to_bfloat16_is_not_mistaken_for_a_difference():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        models = [heads.swap_head(backbone(name), 2) for name in OUTSIDE]
    finally:
        keras.config.set_dtype_policy("float32")
    assert [found(model, DARK) for model in models] == [[], [], []]


def flat(name, preprocess):
    images = keras.Input((16, 16, 3))
    x = keras.layers.Conv2D(2, 3, name="conv")(preprocess(images))
    x = keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(x))
    return keras.Model(images, x, name=name)


def test_a_flat_model_is_told_by_its_own_name():
    assert found(flat("vgg16", OUTSIDE["vgg16"]), PIXELS) == []
    (finding,) = found(flat("vgg16", lambda x: x), PIXELS)
    assert "'vgg16' is left out" in finding.message
    assert found(flat("mine", lambda x: x), PIXELS) == []


def test_a_flat_model_on_the_layers_of_a_given_backbone_is_told_by_that():
    given = backbone("vgg16")
    head = keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(given.output))
    model = keras.Model(given.input, head)
    assert found(model, PIXELS) == []
    (finding,) = found(model, PIXELS, [given])
    assert "'vgg16' is left out" in finding.message


def test_a_given_backbone_that_the_model_does_not_use_is_not_judged():
    assert found(flat("mine", lambda x: x), PIXELS, [backbone("vgg16")]) == []


class Subclassed(keras.Model):
    def __init__(self, preprocess):
        super().__init__()
        self.preprocess, self.backbone = preprocess, backbone("vgg16")
        self.pool, self.head = keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(2)

    def call(self, images):
        return self.head(self.pool(self.backbone(self.preprocess(images))))


def test_a_subclassed_model_is_judged_too():
    right, wrong = Subclassed(OUTSIDE["vgg16"]), Subclassed(lambda x: x)
    for model in (right, wrong):
        model(PIXELS[:1].astype(np.float32))
    assert found(right, PIXELS) == []
    (finding,) = found(wrong, PIXELS)
    assert "'vgg16' is left out" in finding.message


def test_layers_are_left_as_they_were():
    model = heads.swap_head(backbone("vgg16"), 2)
    convolution = model.get_layer("vgg16").get_layer("conv")
    before = set(vars(convolution))
    found(model, PIXELS)
    assert set(vars(convolution)) == before
    assert convolution.call.__func__ is keras.layers.Conv2D.call


def test_vgg16_itself():
    vgg16 = APPLICATIONS.VGG16(include_top=False, weights=None, input_shape=(32, 32, 3))
    x = np.tile(PIXELS, (1, 2, 2, 1))
    assert found(heads.swap_head(vgg16, 2), x) == []
    (finding,) = found(heads.swap_head(vgg16, 2, preprocess=None), x)
    assert "'vgg16' is left out" in finding.message


def test_vectors_have_no_preprocessing():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Dense(2)(inputs), name="vgg16")
    assert found(model, np.random.default_rng(0).normal(size=(12, 4))) == []


@pytest.mark.parametrize("scale", [1 / 255, [1 / 127.5, 1 / 127.5, 1 / 127.5]])
def test_images_that_are_scaled_before_the_model_and_in_it_are_an_error(scale):
    layers = [keras.layers.Rescaling(scale, name="scaling"), keras.layers.Flatten()]
    model = keras.Sequential([keras.Input((16, 16, 3)), *layers, keras.layers.Dense(2)])
    for scaled in (PIXELS / 255, PIXELS / 127.5 - 1):
        (finding,) = found(model, scaled.astype(np.float32))
        assert finding.id == "preprocessing" and not finding.warning
        assert "'scaling' scales images of 0 to 255 down" in finding.message
    assert not found(model, PIXELS) and not found(model, np.zeros_like(PIXELS))
    enlarging = keras.Sequential([keras.Input((16, 16, 3)), keras.layers.Rescaling(255.0)])
    assert not found(enlarging, (PIXELS / 255).astype(np.float32))
