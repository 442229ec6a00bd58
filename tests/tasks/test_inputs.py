import keyword

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from tfbp.data import images
from tfbp.data.examples import Examples
from tfbp.data.splits import Splits
from tfbp.errors import UserError
from tfbp.tasks import inputs
from tfbp.tasks.classification import Classification
from tfbp.tasks.regression import Regression

NAMES = ("ant", "bee", "cat")


def pictures(channels=3):
    x = np.random.default_rng(0).integers(0, 256, (5, 4, 6, channels), np.uint8)
    return Examples.from_arrays(x, np.arange(5) % 3)


def network(shape, units):
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input(shape), keras.layers.Flatten(), keras.layers.Dense(units)])


def classifier(channels=3, **settings):
    """Returns (model, traced signatures) of a classifier of images of 4 by 6 pixels."""
    model = network((4, 6, channels), 3)
    signatures = Classification(NAMES, **settings).signatures(model, pictures(channels))
    return model, {name: traced(signature) for name, signature in signatures.items()}


def traced(signature):
    """Returns a signature as an export runs it."""
    function = tf.function(signature.function).get_concrete_function(**signature.inputs)
    return lambda **tensors: {k: v.numpy() for k, v in function(**tensors).items()}


@pytest.mark.parametrize(
    ("scale", "offset", "names"),
    [
        (1 / 255, 0, ["serving_default"]),
        (2 / 255, -1, ["serving_default"]),
        (1, -120, ["serving_default"]),
        (1, 0, ["serving_default", "image_bytes"]),
    ],
)
def test_files_are_taken_where_images_have_their_scale(scale, offset, names, caplog):
    x = pictures().read(tf.range(5))[0].numpy() * scale + offset
    examples = Examples.from_arrays(x, np.arange(5) % 3)
    found = Classification(NAMES).signatures(network((4, 6, 3), 3), examples)
    assert list(found) == names
    assert ("no signature `image_bytes`" in caplog.text) == (len(names) == 1)


def test_images_of_any_size_are_resized_to_the_model_s():
    model, signatures = classifier()
    for shape in ((2, 4, 6, 3), (1, 40, 33, 3), (3, 2, 1, 3)):
        image = tf.random.stateless_uniform(shape, [1, 2], 0, 255)
        answer = signatures["serving_default"](image=image)
        expected = model(images.resize(image, 4, 6, 3))
        np.testing.assert_allclose(answer["logits"], expected, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_model_of_grey_images_takes_colour_too(channels):
    model, signatures = classifier(channels=1)
    image = tf.random.stateless_uniform((2, 9, 9, channels), [1, 2], 0, 255)
    grey = tf.image.rgb_to_grayscale(image) if channels == 3 else image
    expected = model(tf.image.resize(grey, (4, 6), antialias=True))
    answer = signatures["serving_default"](image=image)
    np.testing.assert_allclose(answer["logits"], expected, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("channels", [2, 4, 5])
def test_a_model_of_grey_images_refuses_other_channels(channels):
    _, signatures = classifier(channels=1)
    with pytest.raises(tf.errors.InvalidArgumentError, match="must have 1 or 3 channels"):
        signatures["serving_default"](image=tf.zeros((2, 9, 9, channels)))


def test_files_are_answered_like_their_pixels_and_a_bad_one_with_nothing():
    _, signatures = classifier()
    sizes = [(4, 6), (30, 20), (2, 2)]
    pixels = [np.random.default_rng(1).integers(0, 256, (*size, 3), np.uint8) for size in sizes]
    files = [tf.io.encode_png(image).numpy() for image in pixels]
    answer = signatures["image_bytes"](
        image_bytes=tf.constant([files[0], b"no image", files[1], files[2][:50], files[2]])
    )
    for row, image in zip((0, 2, 4), pixels, strict=True):
        alone = signatures["serving_default"](image=tf.constant(image[np.newaxis], tf.float32))
        for name, value in alone.items():
            if value.dtype == object:
                assert np.array_equal(answer[name][row], value[0])
            else:
                np.testing.assert_allclose(answer[name][row], value[0], rtol=1e-5)
    assert answer["class"][[1, 3]].tolist() == [b"", b""]
    for name in ("probability", "probabilities", "logits"):
        assert not answer[name][[1, 3]].any()


def test_the_largest_image_may_be_set():
    file = tf.io.encode_png(np.zeros((9, 8, 3), np.uint8)).numpy()
    for largest, good in ((8, False), (9, True)):
        answer = classifier(largest_image=largest)[1]["image_bytes"](
            image_bytes=tf.constant([file])
        )
        assert (answer["class"][0] != b"") == good


def test_values_of_a_bad_image_are_no_numbers():
    examples = Examples.from_arrays(pictures().read(tf.range(5))[0].numpy(), np.float32([1] * 5))
    signatures = Regression().signatures(network((4, 6, 3), 1), examples)
    good = signatures["image_bytes"].request(1)["image_bytes"][0]
    answer = traced(signatures["image_bytes"])(image_bytes=tf.constant([b"", good]))
    assert np.isnan(answer["y"]).tolist() == [[True], [False]]


def test_requests_are_as_many_as_asked_for_of_several_sizes_and_formats():
    signatures = Classification(NAMES).signatures(network((4, 6, 3), 3), pictures())
    x, _ = pictures().read(tf.range(5))
    np.testing.assert_array_equal(signatures["serving_default"].request(1)["image"], x[:1])
    assert signatures["serving_default"].request(7)["image"].shape == (7, 10, 18, 3)
    files = signatures["image_bytes"].request(7)["image_bytes"]
    assert {bytes(file[:4]) for file in files} == {b"\x89PNG", b"\xff\xd8\xff\xe0"}
    decoded = [tf.io.decode_image(file) for file in files]
    assert len({tuple(image.shape) for image in decoded}) == 7
    np.testing.assert_array_equal(decoded[0], x[0])


def test_columns_of_a_table_go_in_and_values_come_out_by_their_names():
    x, y = np.float32([[1, 2], [3, 4], [5, 6]]), np.float32([[1, 0], [2, 0], [3, 1]])
    examples = Splits.from_arrays(
        x, y, columns=["length (cm)", "width"], values=["price", "2nd"], validation=0, test=0
    ).train
    model = network((2,), 2)
    signature = Regression().signatures(model, examples)["serving_default"]
    column = tf.TensorSpec([None], tf.float32)
    assert signature.inputs == {"length_cm": column, "width": column}
    answer = traced(signature)(length_cm=tf.constant(x[:, 0]), width=tf.constant(x[:, 1]))
    assert list(answer) == ["price", "column_2nd"]
    np.testing.assert_allclose(np.stack(list(answer.values()), axis=1), model(x), rtol=1e-6)
    request = signature.request(3)
    assert list(request) == ["length_cm", "width"]
    np.testing.assert_array_equal(
        np.stack(list(request.values()), axis=1), examples.read([0, 1, 2])[0]
    )


def test_columns_of_a_table_with_labels_are_classified():
    x = np.float32([[1, 2], [3, 4], [5, 6]])
    examples = Examples.from_arrays(x, np.arange(3), columns=["a", "b"])
    model = network((2,), 3)
    signature = Classification(NAMES).signatures(model, examples)["serving_default"]
    np.testing.assert_allclose(
        signature.answer(signature.request(3))["logits"], model(x), rtol=1e-6
    )


@pytest.mark.parametrize("names", [["a"], ["a", "b", "c"]])
def test_names_must_be_as_many_as_the_columns(names):
    x, y = np.zeros((3, 2), np.float32), np.float32([1, 2, 3])
    with pytest.raises(UserError, match="`columns` must be one name for each entry of a row"):
        Splits.from_arrays(x, y, columns=names)
    with pytest.raises(UserError, match="`values` must be one name"):
        Splits.from_arrays(x, y, values=["a", "b"])


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["sepal length (cm)", "Width"], ["sepal_length_cm", "Width"]),
        (["2nd", "class", "größe", ""], ["column_2nd", "column_class", "gr_e", "column"]),
        (["a b", "a-b", "a_b_2", "a b"], ["a_b", "a_b_2", "a_b_2_2", "a_b_3"]),
    ],
)
def test_columns_are_called_by_identifiers(names, expected):
    assert inputs.identifiers(names) == expected


@given(st.lists(st.text(max_size=12), max_size=6))
def test_identifiers_are_distinct_and_what_tensorflow_takes(names):
    found = inputs.identifiers(names)
    assert len(set(found)) == len(names)
    for name in found:
        assert name.isascii() and name.isidentifier() and name[0].isalpha()
        assert not keyword.iskeyword(name)
