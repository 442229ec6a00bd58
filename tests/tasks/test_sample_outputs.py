import keras
import numpy as np
import pytest
import tensorflow as tf

from tfbp.data.examples import Examples
from tfbp.errors import UserError
from tfbp.tasks import sample_outputs


class Counting(keras.Model):
    def __init__(self):
        super().__init__()
        self.calls = 0
        self.dense = keras.layers.Dense(2)

    def call(self, x):
        self.calls += tf.executing_eagerly()
        return self.dense(x)


@pytest.fixture
def sampled():
    """Returns a model, and two sets of examples that it takes."""
    model, rows = Counting(), np.ones([20, 3], np.float32)
    model(rows)
    model.calls = 0
    return model, *(Examples.from_arrays(rows, rows[:, :2]) for _ in range(2))


def test_a_model_is_called_once_for_the_same_examples(sampled):
    model, one, other = sampled
    with sample_outputs.computed_once():
        for examples in (one, other, one):
            assert sample_outputs.outputs(model, examples).shape == (sample_outputs.EXAMPLES, 2)
        assert model.calls == 2
        sample_outputs.compute(model, one)
        assert model.calls == 3


def test_it_is_called_again_where_its_weights_may_have_changed(sampled):
    model, examples, _ = sampled
    with sample_outputs.computed_once():
        before = sample_outputs.outputs(model, examples)
    model.dense.bias.assign_add([1, 1])
    for _ in range(2):
        np.testing.assert_allclose(sample_outputs.outputs(model, examples), before + 1, rtol=1e-6)
    assert model.calls == 3


def test_what_a_layer_refuses_is_said_with_its_reason():
    inner = keras.Sequential([keras.Input((6, 6, 3)), keras.layers.Conv2D(4, 3, name="conv")])
    # A model without a graph asks its layers, which tell Keras in a frame of their own.
    grey = Examples.from_arrays(np.ones([20, 6, 6, 1], np.float32), np.arange(20) % 2)

    class Outer(keras.Model):
        def call(self, x):
            return inner(x)

    for model in (inner, Outer()):
        with pytest.raises(UserError, match=r"are float32 \[6, 6, 1\]\. It answered: .*") as error:
            sample_outputs.outputs(model, grey)
        assert "Exception encountered" not in str(error.value)
        assert "3" in str(error.value).partition("It answered: ")[2]
