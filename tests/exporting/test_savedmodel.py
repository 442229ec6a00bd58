import hashlib
import pathlib
import re
import subprocess
import sys

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


ROOT = pathlib.Path(__file__).parents[2]
# Exports a model with a recurrent layer and a lookup table, of two inputs.
EXPORT = """
import sys
import keras
import numpy as np
import tensorflow as tf
from tfbp.exporting import savedmodel
from tfbp.tasks.task import Signature

keras.utils.set_random_seed(0)
numbers, scale = keras.Input((4,), name="numbers"), keras.Input((1,), name="scale")
tokens = keras.layers.IntegerLookup(vocabulary=[3, 5, 8], name="lookup")(numbers)
states = keras.layers.LSTM(3, name="lstm")(keras.layers.Embedding(4, 3, name="embed")(tokens))
y = keras.layers.Dense(2, name="dense")(keras.layers.BatchNormalization(name="norm")(states))
model = keras.Model([numbers, scale], y * scale, name="model")

def answer(numbers, scale):
    return {"y": model([numbers, scale])}

def write(folder):
    specs = {"numbers": tf.TensorSpec([None, 4], tf.int64), "scale": tf.TensorSpec([None, 1])}
    savedmodel.write(model, {"default": Signature(answer, specs, None)}, folder)
"""


def hashes(folder):
    files = sorted(path for path in pathlib.Path(folder).rglob("*") if path.is_file())
    return [(path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in files]


@pytest.fixture(scope="module")
def exporter():
    """Returns the function of `EXPORT` that writes the export."""
    names = {}
    exec(EXPORT, names)
    return names["write"]


def test_the_same_model_is_the_same_bytes_whatever_was_done_before(tmp_path):
    # Without the lookup table: the first export of a process names it in the graph.
    code, names = re.sub(r"tokens = .*", "tokens = numbers", EXPORT), {}
    exec(code, names)
    for number in range(2):
        names["write"](tmp_path / str(number))
    assert hashes(tmp_path / "0") == hashes(tmp_path / "1")


@pytest.mark.slow
def test_three_processes_export_the_same_bytes(tmp_path):
    for number in range(3):
        code = f"{EXPORT}\nwrite(sys.argv[1])"
        command = [sys.executable, "-c", code, str(tmp_path / str(number))]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    first = hashes(tmp_path / "0")
    assert len(first) >= 4
    assert hashes(tmp_path / "1") == hashes(tmp_path / "2") == first


def test_an_export_is_called_by_position_by_name_and_by_keras(exporter, tmp_path):
    exporter(tmp_path)
    numbers, scale = tf.constant([[3, 5, 8, 0]], tf.int64), tf.constant([[2.0]])
    loaded = tf.saved_model.load(tmp_path)
    expected = loaded.signatures["serving_default"](numbers=numbers, scale=scale)["y"]
    assert np.abs(expected).max() > 0
    layer = keras.layers.TFSMLayer(tmp_path, call_endpoint="default")
    for answer in (
        loaded.default(numbers, scale),
        loaded.default(numbers=numbers, scale=scale),
        loaded.default(scale=scale, numbers=numbers),
        layer(numbers, scale=scale),
        keras.layers.TFSMLayer(tmp_path, call_endpoint="serving_default")(numbers, scale=scale),
    ):
        np.testing.assert_array_equal(answer["y"], expected)
