"""Exports answered by OpenVINO: an engine with a graph reader and arithmetic of its own."""

import keras
import numpy as np
import openvino
import pytest
from openvino import opset11 as ops
from openvino.frontend import ConversionExtension

from tfbp.data import tables, text
from tfbp.data.examples import Examples
from tfbp.data.vocabulary import Vocabulary
from tfbp.exporting import savedmodel
from tfbp.tasks.classification import Classification
from tfbp.tasks.language import LanguageModel
from tfbp.tasks.regression import Regression

pytestmark = pytest.mark.slow

NAMES = ("ant", "bee", "cat")


def resize(node):
    """What OpenVINO has in the place of TensorFlow's antialiased resizing: Pillow's filter."""
    images = ops.transpose(ops.convert(node.get_input(0), "f32"), [0, 3, 1, 2])
    resized = ops.interpolate(
        images, node.get_input(1), "bilinear_pillow", "sizes", axes=np.array([2, 3])
    )
    return [ops.transpose(resized, [0, 2, 3, 1]).output(0)]


def answer(folder, request):
    """Returns what OpenVINO answers as `serving_default`, the signature that it reads."""
    core = openvino.Core()
    core.add_extension(ConversionExtension("ScaleAndTranslate", resize))
    model = core.read_model(str(folder))
    # With the image's size unknown, 2026.4 reads memory that it has not written: what follows the
    # branch that resizes is then at random.
    model.reshape({name: [-1, *value.shape[1:]] for name, value in request.items()})
    model = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return {port.get_any_name(): value for port, value in model(request).items()}


def assert_alike(answered, expected):
    assert answered.keys() == expected.keys()
    for name, value in expected.items():
        if value.dtype == object:
            assert answered[name].tolist() == value.astype(str).tolist()
        else:
            scale = np.abs(value).max()
            np.testing.assert_allclose(answered[name], value, rtol=0, atol=1e-5 * scale)


def images(channels):
    x = np.random.default_rng(0).integers(0, 256, (40, 12, 12, channels), np.uint8)
    return Examples.from_arrays(x, np.arange(40) % 3)


def convolutional(channels):
    layers = keras.layers
    return [
        keras.Input((12, 12, channels)),
        layers.Rescaling(1 / 255),
        layers.Conv2D(8, 3, activation="relu"),
        layers.BatchNormalization(),
        layers.DepthwiseConv2D(3, activation="gelu"),
        layers.MaxPooling2D(),
        layers.Flatten(),
        layers.Dense(3, kernel_initializer="normal"),
    ]


@pytest.fixture(scope="module", params=[1, 3], ids=["grey", "colour"])
def pictures(request, tmp_path_factory):
    """A convolutional classifier: (its export, the signature that asks the model itself)."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(convolutional(request.param))
    folder = tmp_path_factory.mktemp("images")
    signatures = Classification(NAMES).signatures(model, images(request.param))
    savedmodel.write(model, signatures, folder)
    return folder, signatures["serving_default"]


@pytest.mark.parametrize("batch", [1, 3, 32])
def test_images_are_classified_alike(pictures, batch):
    # Batches over 1 are larger than the model's images, and so shrunk by either engine.
    folder, signature = pictures
    request = signature.request(batch)
    assert_alike(answer(folder, request), signature.answer(request))


def test_smaller_images_are_classified_alike(pictures):
    folder, signature = pictures
    request = {"image": signature.request(4)["image"][:, :9, :5]}
    assert_alike(answer(folder, request), signature.answer(request))


@pytest.mark.parametrize("batch", [1, 3, 32])
def test_columns_give_the_values_alike(tmp_path, batch):
    examples = tables.line().train
    hidden = keras.layers.Dense(5, activation="tanh")
    model = keras.Sequential([keras.Input((1,)), hidden, keras.layers.Dense(1)])
    signatures = Regression().signatures(model, examples)
    savedmodel.write(model, signatures, tmp_path)
    request = signatures["serving_default"].request(batch)
    assert_alike(answer(tmp_path, request), signatures["serving_default"].answer(request))


@pytest.mark.parametrize("cell", [keras.layers.LSTM, keras.layers.GRU, keras.layers.SimpleRNN])
def test_a_step_of_a_language_model_is_alike(tmp_path, cell):
    content = "to be or not to be, that is the question. " * 8
    vocabulary = Vocabulary.from_text(content, "char", 50)
    model = keras.Sequential(
        [
            keras.Input((None,), dtype="int32"),
            keras.layers.Embedding(vocabulary.size, 6),
            cell(8, return_sequences=True),
            cell(7, return_sequences=True),
            keras.layers.Dense(vocabulary.size),
        ]
    )
    examples = text.windows(content, vocabulary, steps=6)
    step = LanguageModel(vocabulary).signatures(model, examples)["step"]
    savedmodel.write(model, {"step": step}, tmp_path)
    request = step.request(3)
    # A name is given once there, so the state that comes out is called otherwise.
    expected = {
        f"{name}_1" if name in request else name: value
        for name, value in step.answer(request).items()
    }
    assert_alike(answer(tmp_path, request), expected)
