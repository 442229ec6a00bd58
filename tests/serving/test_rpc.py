"""The official gRPC stubs as the client."""

import json
import os

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_management_pb2,
    predict_pb2,
)

from tfbp.serving import tensors
from tfbp.serving.status import StatusError

SECONDS = 20


def request(name="half_plus_two", signature="", **inputs):
    message = predict_pb2.PredictRequest()
    message.model_spec.name = name
    message.model_spec.signature_name = signature
    for key, value in inputs.items():
        message.inputs[key].CopyFrom(tf.make_tensor_proto(value))
    return message


def refused(call, message):
    """Returns the code and the text that a call is refused with."""
    with pytest.raises(grpc.RpcError) as caught:
        call(message, SECONDS)
    return caught.value.code(), caught.value.details()


def test_predict_answers_typed_fields_and_the_version(client):
    response = client.prediction.Predict(request(x=[1.0, 2.0, 5.0]), SECONDS)
    assert list(response.outputs["y"].float_val) == [2.5, 3.0, 4.5]
    assert tf.make_ndarray(response.outputs["y"]).shape == (3,)
    spec = response.model_spec
    assert (spec.name, spec.signature_name, spec.version.value) == (
        "half_plus_two",
        "serving_default",
        123,
    )


def test_a_version_and_outputs_can_be_chosen(client):
    message = request("shapes", "echo", text=[b"\xff"])
    message.model_spec.version.value = 1
    message.output_filter.append("text_bytes")
    response = client.prediction.Predict(message, SECONDS)
    assert dict(response.outputs).keys() == {"text_bytes"}
    assert list(response.outputs["text_bytes"].string_val) == [b"\xff"]


def test_metadata_holds_the_signatures(client):
    message = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    message.model_spec.name = "half_plus_two"
    response = client.prediction.GetModelMetadata(message, SECONDS)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(signatures)
    inputs = signatures.signature_def["serving_default"].inputs
    assert inputs["x"].dtype == tf.float32.as_datatype_enum
    assert response.model_spec.version.value == 123


def test_status_tells_the_state_of_each_version(client):
    message = get_model_status_pb2.GetModelStatusRequest()
    message.model_spec.name = "half_plus_two"
    response = client.model.GetModelStatus(message, SECONDS)
    (status,) = response.model_version_status
    assert (status.version, status.status.error_code) == (123, 0)
    assert status.state == get_model_status_pb2.ModelVersionStatus.AVAILABLE


def test_what_is_not_there_is_said_in_tensorflow_servings_words(client):
    code = grpc.StatusCode
    predict = client.prediction.Predict
    assert refused(predict, request("half")) == (
        code.NOT_FOUND,
        "Servable not found for request: Latest(half)",
    )
    assert refused(predict, request(signature="other")) == (
        code.FAILED_PRECONDITION,
        'Serving signature key "other" not found.',
    )
    assert refused(predict, request(y=[1.0])) == (
        code.INVALID_ARGUMENT,
        "input size does not match signature: 1!=1 len({y}) != len({x}). "
        "Sent extra: {y}. Missing but required: {x}.",
    )
    assert refused(predict, predict_pb2.PredictRequest()) == (
        code.INVALID_ARGUMENT,
        "Missing ModelSpec",
    )
    message = request(x=[1.0])
    message.output_filter.append("z")
    assert refused(predict, message) == (
        code.INVALID_ARGUMENT,
        "output tensor alias not found in signature: z Outputs expected to be in the set {y}.",
    )
    assert refused(predict, request(x=[1])) == (
        code.INVALID_ARGUMENT,
        "Expects input x to be float but int32 is provided",
    )
    message = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["other"])
    message.model_spec.name = "half_plus_two"
    assert refused(client.prediction.GetModelMetadata, message) == (
        code.INVALID_ARGUMENT,
        "Metadata field other is not supported",
    )


def test_what_is_not_offered_is_unimplemented(client):
    # differs: reload
    message = model_management_pb2.ReloadConfigRequest()
    assert refused(client.model.HandleReloadConfigRequest, message)[0] == (
        grpc.StatusCode.UNIMPLEMENTED
    )


def test_a_small_message_cannot_announce_a_large_tensor(client):
    # differs: announced
    message = request(x=[1.0])
    message.inputs["x"].tensor_shape.dim[0].size = 2**40
    code, text = refused(client.prediction.Predict, message)
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert "is over the limit" in text


@pytest.mark.parametrize(
    "dtype",
    [
        "float32",
        "float64",
        "int8",
        "uint8",
        "int16",
        "uint16",
        "int32",
        "int64",
        "uint32",
        "uint64",
        "bool",
        "float16",
        "complex64",
    ],
)
def test_a_tensor_becomes_a_proto_and_back(dtype):
    array = np.arange(6).reshape(2, 3).astype(dtype)
    again = tensors.of_proto(tensors.to_proto(array))
    np.testing.assert_array_equal(again, array)
    assert again.dtype == array.dtype


@pytest.mark.parametrize("dtype", ["float32", "int64", "bool", "float16", "object"])
def test_a_long_list_of_values_is_read_as_a_short_one(dtype):
    values = np.arange(100_000).astype(dtype)
    if dtype == "object":
        values = np.array([str(value).encode() for value in range(100_000)], object)
    proto = tensors.to_proto(values.reshape(2, -1))
    np.testing.assert_array_equal(tensors.of_proto(proto), values.reshape(2, -1))
    proto.tensor_shape.dim[0].size = 3  # The last value stands for those that are missing.
    np.testing.assert_array_equal(tensors.of_proto(proto)[2], np.repeat(values[-1:], 50_000))
    proto.tensor_shape.dim[0].size = 1
    with pytest.raises(StatusError):
        tensors.of_proto(proto)


@pytest.mark.parametrize(
    "change",
    [
        lambda proto: proto.tensor_shape.dim.add(size=-1),
        lambda proto: setattr(proto.tensor_shape, "unknown_rank", True),
        lambda proto: setattr(proto, "dtype", 99),
        lambda proto: setattr(proto, "dtype", 0),
        lambda proto: setattr(proto, "tensor_content", b"123"),
        lambda proto: proto.float_val.extend([1.0] * 9),
    ],
)
def test_a_proto_that_contradicts_itself_is_refused(change):
    proto = tensors.to_proto(np.zeros([2], np.float32))
    change(proto)
    with pytest.raises(StatusError):
        tensors.of_proto(proto)


@pytest.mark.parametrize("dtype", [tf.variant, tf.resource])
def test_a_tensor_of_a_type_without_values_is_refused(client, dtype):
    # differs: references
    message = request("shapes", "echo", text=[b"a"])
    message.inputs["text"].dtype = dtype.as_datatype_enum
    code, text = refused(client.prediction.Predict, message)
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert text == f"A tensor of type {dtype.name} cannot be sent"


@pytest.mark.parametrize("dtype", [tf.float32, tf.resource, tf.variant])
def test_a_reference_is_refused(client, dtype):
    message = request(x=[1.0])
    message.inputs["x"].dtype = 100 + dtype.as_datatype_enum  # types.proto: DT_…_REF
    code, text = refused(client.prediction.Predict, message)
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert text == f"A tensor of type {dtype.name}_ref cannot be sent"


def test_a_request_without_rows_is_answered_on_both_ports(client):
    response = client.prediction.Predict(request(x=np.zeros([0], np.float32)), SECONDS)
    assert tf.make_ndarray(response.outputs["y"]).shape == (0,)
    status, text = client.ask("/v1/models/half_plus_two:predict", {"inputs": []})
    assert (status, json.loads(text)) == (200, {"outputs": []})


def test_a_call_that_nobody_waits_for_gives_its_thread_back(client):
    long = request("shapes", "spin", x=[1.0], rounds=2**30)
    waiting = [client.prediction.Predict.future(long, 0.5) for _ in range(2 * os.cpu_count())]
    for one in waiting:
        assert one.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    # Each of them might have gone on for the server's own 30 seconds.
    short = request("shapes", "spin", x=[1.0], rounds=1)
    assert list(client.prediction.Predict(short, 10).outputs["y"].float_val) == [1.0]
