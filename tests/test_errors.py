import keras
import numpy as np
import pytest

from tfbp.errors import UserError, mistake, reason


def test_a_mistake_names_the_argument_the_rule_and_what_was_received():
    error = mistake("rate", "must be positive.", -0.5)
    assert isinstance(error, UserError)
    assert isinstance(error, ValueError)
    assert str(error) == "`rate` must be positive. Received: -0.5."


def test_a_close_name_is_suggested_and_the_known_ones_are_listed_in_order():
    error = mistake("recipe", "must be known", "vgg61", ["vgg16", "mlp"])
    assert str(error) == (
        "`recipe` must be known. Received: 'vgg61'. Did you mean 'vgg16'?\nKnown:\n - mlp\n - vgg16"
    )


def test_a_name_that_is_close_to_none_gets_no_suggestion():
    assert "Did you mean" not in str(mistake("recipe", "must be known", "zzz", ["vgg16", "mlp"]))


@pytest.mark.parametrize(("count", "more"), [(40, ""), (43, "… and 3 more")])
def test_a_long_list_of_known_names_is_cut(count, more):
    text = str(mistake("layer", "must be known", "?", (f"layer_{i:03}" for i in range(count))))
    assert text.count("\n - layer_") == 40
    assert text.endswith(more)


class Picky(keras.layers.Layer):
    """A layer that refuses what it is given, in two lines."""

    def call(self, x):
        raise ValueError("needs 7 channels\nand a rest")


def refused(*layers, channels=3):
    """Returns what Keras raises for images of a number of channels."""
    with pytest.raises(ValueError) as caught:
        keras.Sequential(layers)(np.zeros((2, 8, 8, channels), np.float32))
    return caught.value


def test_the_reason_that_keras_gives_is_kept_and_its_frame_left_out():
    conv = keras.layers.Conv2D(4, 3, name="conv")
    conv.build((None, 8, 8, 3))
    said = reason(refused(conv, channels=1))
    assert "layer 'conv' is incompatible" in said and "to have value 3" in said
    inner = keras.Sequential([keras.layers.ReLU(), Picky(name="picky")], name="inner")
    error = refused(inner)
    assert str(error).startswith("Exception encountered when calling")
    assert reason(error) == "needs 7 channels"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("one line"), "one line"),
        (ValueError("\n first \nsecond"), "first"),
        (KeyError(), "KeyError"),
        (ValueError("Exception encountered when calling A.call().\n\n"), "ValueError"),
    ],
)
def test_other_errors_give_their_first_line(error, expected):
    assert reason(error) == expected
