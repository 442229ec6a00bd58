import keras
import numpy as np
import pytest
import tensorflow as tf

from tfbp.data.examples import Examples
from tfbp.exporting import parity, savedmodel
from tfbp.tasks.regression import Regression


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A model with a lookup table inside: (its SavedModel, a request, the expected answer)."""
    folder = tmp_path_factory.mktemp("export")
    numbers = keras.Input((2,))
    tokens = keras.layers.IntegerLookup(vocabulary=[3, 5, 8])(keras.ops.cast(numbers, "int64"))
    values = keras.layers.Flatten()(keras.layers.Embedding(4, 3)(tokens))
    model = keras.Model(numbers, keras.layers.Dense(1)(values))
    x = np.float32([[3, 5], [8, 8], [1, 3]])
    examples = Examples.from_arrays(x, np.float32([1, 2, 3]))
    savedmodel.write(model, Regression().signatures(model, examples), folder)
    return folder, {"serving_default": {"x": x}}, {"serving_default": {"y": model(x).numpy()}}


def test_lookup_tables_inside_the_model_are_saved(written):
    folder, requests, expected = written
    proof = parity.check(folder, requests, expected)
    assert proof["signatures"] == {"serving_default": {"y": proof["difference"]}}
    assert proof["difference"] <= 1e-5


def test_a_request_that_the_export_does_not_take_is_told(written):
    folder, requests, expected = written
    renamed = {"serving_default": {"z": requests["serving_default"]["x"]}}
    with pytest.raises(parity.ParityError, match=r"`serving_default` must take \['z'\]"):
        parity.check(folder, renamed, expected)


def test_recurrent_layers_are_traced_without_cudnn_and_keep_their_setting():
    tokens = keras.Input((4, 2))
    inner = keras.layers.LSTM(3, use_cudnn="auto")
    model = keras.Model(tokens, keras.layers.Bidirectional(inner)(tokens))
    wrapper = model.layers[-1]
    recurrent = [wrapper.forward_layer, wrapper.backward_layer]
    with savedmodel.portable(model):
        assert [layer.use_cudnn for layer in recurrent] == [False] * 2
        assert tf.is_tensor(model(np.zeros((1, 4, 2), np.float32)))
    assert [layer.use_cudnn for layer in recurrent] == ["auto"] * 2
