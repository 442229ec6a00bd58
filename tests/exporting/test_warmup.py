import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorflow_serving.apis import prediction_log_pb2

from tfbp.data.examples import Examples
from tfbp.exporting import parity, savedmodel, warmup
from tfbp.tasks.regression import Regression

REQUESTS = {
    "generate": {"prompt": np.array([b"one", b"\xff" * 300], object), "length": np.int32(16)},
    "step": {
        "token": np.int32([1, -2]),
        "state_0": np.float32([[0.5, np.inf], [-1, 2]]),
        "seed": np.array(2**40),
    },
    "empty": {},
}


def test_the_file_is_tensorflow_serving_s_own(tmp_path):
    warmup.write(tmp_path, "lstm_lm", REQUESTS)
    file = tmp_path / "assets.extra" / "tf_serving_warmup_requests"
    records = tf.data.TFRecordDataset(str(file)).as_numpy_iterator()
    logs = [prediction_log_pb2.PredictionLog.FromString(record) for record in records]
    assert [log.WhichOneof("log_type") for log in logs] == ["predict_log"] * 3
    for log, (signature, expected) in zip(logs, REQUESTS.items(), strict=True):
        request = log.predict_log.request
        assert request.model_spec.name == "lstm_lm"
        assert request.model_spec.signature_name == signature
        assert request.inputs.keys() == expected.keys()
        for name, value in expected.items():
            assert request.inputs[name].dtype == tf.as_dtype(value.dtype).as_datatype_enum
            np.testing.assert_array_equal(tf.make_ndarray(request.inputs[name]), value)


@settings(max_examples=50, deadline=None)
@given(
    name=st.text(max_size=200), value=st.lists(st.binary(max_size=20_000), min_size=1, max_size=3)
)
def test_what_is_written_is_read(tmp_path_factory, name, value):
    folder = tmp_path_factory.mktemp("export")
    warmup.write(folder, name, {name: {name: np.array(value, object)}})
    ((signature, inputs),) = warmup.read(folder)
    assert (signature, list(inputs)) == (name, [name])
    assert inputs[name].tolist() == value


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    examples = Examples.from_arrays(np.float32([[1, 2], [3, 4]]), np.float32([1, 2]))
    savedmodel.write(model, Regression().signatures(model, examples), folder)
    return folder


@pytest.mark.parametrize(
    ("signature", "request_", "message"),
    [
        ("generate", {"x": np.zeros((1, 2), np.float32)}, "generate"),
        ("serving_default", {"y": np.zeros((1, 2), np.float32)}, "must take"),
        ("serving_default", {"x": np.zeros((1, 3), np.float32)}, "shape"),
    ],
)
def test_a_bad_warm_up_request_is_found_before_publishing(written, signature, request_, message):
    warmup.write(written, "model", {signature: request_})
    with pytest.raises((KeyError, ValueError, tf.errors.InvalidArgumentError), match=message):
        parity.this_process(written, [])
    warmup.write(written, "model", {"serving_default": {"x": np.zeros((1, 2), np.float32)}})
    assert parity.this_process(written, []) == []
