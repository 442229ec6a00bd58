import keras
import numpy as np
import pytest
import tensorflow as tf

from tfbp.data.examples import Examples
from tfbp.exporting import parity, savedmodel
from tfbp.modeling import adapters
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
    due = [{"serving_default": {"y": model(x).numpy()}}]
    return folder, {"serving_default": {"x": x}}, parity.Reference(due, due, rounding=0.0)


def test_lookup_tables_inside_the_model_are_saved(written):
    folder, requests, expected = written
    proof = parity.check(folder, [requests], expected)
    assert proof["signatures"] == {"serving_default": {"y": proof["difference"]}}
    assert proof["difference"] <= 1e-5
    with parity.answered_by(parity.this_process):
        assert parity.check(folder, [requests], expected) == proof


def test_a_request_that_the_export_does_not_take_is_told(written):
    folder, requests, expected = written
    renamed = {"serving_default": {"z": requests["serving_default"]["x"]}}
    with pytest.raises(parity.ParityError, match=r"`serving_default` must take \['z'\]"):
        parity.check(folder, [renamed], expected)


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


def test_adapters_are_merged_in_the_export_and_stay_in_the_model(tmp_path):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="dense")])
    plain = [tuple(variable.shape) for variable in model.variables]
    adapters.add_lora(model, "dense", rank=1)
    dense = model.get_layer("dense")
    dense.lora_kernel_b.assign([[1.0, -2.0]])
    x = np.float32([[1, 2, 3], [-1, 0, 4]])
    expected = model(x).numpy()
    examples = Examples.from_arrays(x, np.float32([[1, 2], [3, 4]]))

    savedmodel.write(model, Regression().signatures(model, examples), tmp_path)

    variables = tf.train.list_variables(str(tmp_path / "variables" / "variables"))
    shapes = [tuple(shape) for name, shape in variables if "VARIABLE_VALUE" in name]
    assert sorted(shapes) == sorted(plain)  # each is written once
    assert b"lora" not in (tmp_path / "saved_model.pb").read_bytes()
    answer = tf.saved_model.load(tmp_path).signatures["serving_default"](x=tf.constant(x))
    np.testing.assert_allclose(answer["y"], expected, rtol=1e-6)
    assert len(model.variables) == len(plain) + 2
    np.testing.assert_array_equal(model(x), expected)
