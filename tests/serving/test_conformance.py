"""What TensorFlow Serving's ports answer, fact by fact, from its own tests and documentation.

https://github.com/tensorflow/serving at 9d981c5 (2026-07-30): http_rest_api_handler_test.cc and
http_server.cc in model_servers, g3doc/api_rest.md, and in servables/tensorflow the tests of
predict, classifier, regressor and multi_inference. Each fact is the same here, or better on
purpose: then it names its row in the table of docs/serving.md, which the last test holds to be
complete.
"""

import json
import pathlib
import re
import urllib.error
import urllib.request

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_status_pb2,
    inference_pb2,
    predict_pb2,
    regression_pb2,
)

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "serving.md"
SECONDS = 20
M = "/v1/models/half_plus_two"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, write):
    """Returns a folder with `half_plus_two/123`, which has what that of TensorFlow Serving has.

    Beside it `odd/1`, whose signatures are what servers stumble over.
    """
    folder = tmp_path_factory.mktemp("saved_models")
    any_shape, strings = tf.TensorSpec(None, tf.float32), tf.TensorSpec([None], tf.string)

    def parsed(inputs):
        return tf.io.parse_example(inputs, {"x": tf.io.FixedLenFeature([1], tf.float32)})["x"]

    labels = tf.constant([[b"a", b"b"]])
    write.functions(
        folder / "half_plus_two" / "123",
        serving_default=(lambda x: {"y": 0.5 * x + 2.0}, {"x": any_shape}),
        regress_x_to_y=(
            lambda inputs: {"outputs": 0.5 * parsed(inputs) + 2.0},
            {"inputs": strings},
        ),
        classify_x_to_y=(
            lambda inputs: {"scores": 0.5 * parsed(inputs) + 2.0},
            {"inputs": strings},
        ),
        labelled=(
            lambda inputs: {
                "classes": tf.repeat(labels, tf.size(inputs), 0),
                "scores": tf.repeat(parsed(inputs), 2, 1),
            },
            {"inputs": strings},
        ),
        wide=(lambda inputs: {"outputs": tf.repeat(parsed(inputs), 2, 1)}, {"inputs": strings}),
    )
    write.functions(
        folder / "odd" / "1",
        serving_default=(lambda: {"y": tf.constant([1.0, 2.0])}, {}),
        lone_string=(lambda x: {"y": tf.strings.reduce_join(x)}, {"x": strings}),
        scalar=(lambda x: {"y": 0.5 * x + 2.0}, {"x": tf.TensorSpec([], tf.float32)}),
        halves=(
            lambda x: {"h": tf.cast(x, tf.float16), "b": tf.cast(x, tf.bfloat16)},
            {"x": any_shape},
        ),
    )
    file = folder / "odd" / "1" / "saved_model.pb"
    saved = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    definitions = saved.meta_graphs[0].signature_def
    definitions["halves"].defaults["x"].CopyFrom(tf.make_tensor_proto([1.0, 2.5]))
    definitions["sparse"].inputs["x"].coo_sparse.values_tensor_name = "none:0"
    file.write_bytes(saved.SerializeToString())
    return folder


@pytest.fixture(scope="module")
def client(folder, serve_module):
    """Returns a client of a server over `folder`, with a label."""
    return serve_module(folder, labels={"half_plus_two": {"canary": 123}})


STATUS = {
    "model_version_status": [
        {
            "version": "123",
            "state": "AVAILABLE",
            "status": {"error_code": "OK", "error_message": ""},
        }
    ]
}
ROWS, X80 = '{"instances": [1.0, 2.0]}', '{"examples": [{"x": 80.0}]}'
REGRESS = '{"signature_name": "regress_x_to_y", "examples": [{"x": 80.0}]}'
CLASSIFY = '{"signature_name": "classify_x_to_y", "examples": [{"x": 20.0}]}'
LARGEST = 2**64 - 1
# (method and path, body, status, JSON of the answer or a part of it)
REST = [
    ("GET /v1/foo", "", 400, "Malformed request: GET /v1/foo"),
    ("POST /v1/foo", "", 400, "Malformed request"),
    ("GET /v1/models", "", 400, "Missing model name in request."),
    ("GET /v1/models/", "", 400, "Malformed request"),
    ("GET /v1/models/versions/1", "", 400, "Missing model name in request."),
    ("GET /v1/models/debug/model_name", "", 400, "Malformed request"),
    ("POST /v1/models", "", 400, "Malformed request"),
    ("GET /v1/models/foo:predict", "", 400, "Malformed request"),
    ("GET /v1/models/foo/version/50:predict", "", 400, "Malformed request"),
    ("POST /v1/models/foo/version/50:regress", "", 400, "Malformed request"),
    ("POST /v1/models/foo/versions/HELLO:regress", "", 400, "Malformed request"),
    (f"POST /v1/models/foo/versions/{LARGEST}:regress", "", 400, "Failed to convert version"),
    ("POST /v1/models/foo/metadata", "", 400, "Malformed request"),
    ("POST /v1/models/foo/label/some_label:regress", "", 400, "Malformed request"),
    ("POST /v1/models/foo/versions/5/labels/some:regress", "", 400, "Malformed request"),
    ("POST /v1/models/foo/versions/some_label:regress", "", 400, "Malformed request"),
    ("PUT /v1/models/foo:predict", ROWS, 400, "Malformed request"),
    ("POST /v1/models/foo:predict", ROWS, 404, "Servable not found for request: Latest(foo)"),
    ("POST /v1/models/foo/versions/50:predict", ROWS, 404, "Specific(foo, 50)"),
    ("POST /v1/models/foo:predict", "{", 400, "JSON Parse error"),
    (f"POST {M}/versions/99:predict", ROWS, 404, "Specific(half_plus_two, 99)"),
    (f"POST {M}:predict", "", 400, "JSON Parse error: The document is empty"),
    (f"POST {M}:predict", "instances = [1, 2]", 400, "JSON Parse error: Invalid value"),
    (f"POST {M}:predict", '{"instances": ["x", "y"]}', 400, "not of expected type: float"),
    (f"POST {M}/labels/no:predict", ROWS, 400, "Unrecognized servable version label: no"),
    (f"POST {M}:predict", '{"signature_name": 100}', 400, "key must be a string value."),
    (f"POST {M}:predict", '{"signature_name": "no"}', 400, "not found in signature def"),
    (f"POST {M}:predict", ROWS, 200, {"predictions": [2.5, 3.0]}),
    (
        f"POST {M}:predict",
        '{"instances": [[1, 2], [3, 4]]}',
        200,
        {"predictions": [[2.5, 3.0], [3.5, 4.0]]},
    ),
    (f"POST {M}:predict", '{"inputs": 3}', 200, {"outputs": 3.5}),
    (f"POST {M}:predict", '{"inputs": []}', 200, {"outputs": []}),
    (f"POST {M}/versions/123:predict", ROWS, 200, {"predictions": [2.5, 3.0]}),
    (f"POST {M}/versions/0123:predict", ROWS, 200, {"predictions": [2.5, 3.0]}),
    (f"POST {M}/labels/canary:predict", ROWS, 200, {"predictions": [2.5, 3.0]}),
    ("POST /V1/MODELS/half%5Fplus%5Ftwo:PREDICT", ROWS, 200, {"predictions": [2.5, 3.0]}),
    (
        f"POST {M}:predict",
        '{"signature_name": "serving_default", "inputs": [3.0]}',
        200,
        {"outputs": [3.5]},
    ),
    (f"POST {M}:regress", REGRESS, 200, {"results": [42.0]}),
    (f"POST {M}/versions/123:regress", REGRESS, 200, {"results": [42.0]}),
    (f"POST {M}/labels/canary:regress", REGRESS, 200, {"results": [42.0]}),
    (f"POST {M}:classify", CLASSIFY, 200, {"results": [[["", 12.0]]]}),
    (f"POST {M}/labels/canary:classify", CLASSIFY, 200, {"results": [[["", 12.0]]]}),
    (
        f"POST {M}:classify",
        CLASSIFY.replace("classify_x_to_y", "labelled"),
        200,
        {"results": [[["a", 20.0], ["b", 20.0]]]},
    ),
    (f"POST {M}:regress", X80, 400, "No regression inputs found in SignatureDef"),
    (f"POST {M}:classify", X80, 400, "No classification inputs found in SignatureDef"),
    (f"POST {M}:classify", REGRESS, 400, "Expected classification signature outputs to contain"),
    (f"POST {M}:regress", CLASSIFY, 400, "No regression outputs found in SignatureDef"),
    (f"POST {M}:regress", REGRESS.replace("regress_x_to_y", "wide"), 400, "but got [1,2]"),
    (
        f"POST {M}:regress",
        REGRESS.replace("regress_x_to_y", "no"),
        400,
        "No signature was found with the name: no",
    ),
    (f"POST {M}:regress", "{}", 400, "key 'examples' is expected and was not found"),
    (f"GET {M}", "", 200, STATUS),
    (f"GET {M}/versions/123", "", 200, STATUS),
    (f"GET {M}/labels/canary", "", 200, STATUS),
    (f"GET {M}/labels/other", "", 200, STATUS),
    (f"GET {M}/versions/7", "", 404, "Could not find version 7 of model half_plus_two"),
    ("GET /v1/models/foo", "", 404, "Could not find any versions of model foo"),
    (f"GET {M}/labels/other/metadata", "", 400, "Unrecognized servable version label: other"),
    ("POST /v1/models/odd:predict", ROWS, 400, "Failed to get input map for signature: DEFAULT"),
    (
        "POST /v1/models/odd:predict",
        '{"signature_name": "lone_string", "inputs": ["a", "b"]}',
        200,
        {"outputs": "ab"},
    ),
    (
        "POST /v1/models/odd:predict",
        '{"signature_name": "lone_string", "instances": ["a"]}',
        400,
        "Tensor name: y has no shape information",
    ),
    (
        "POST /v1/models/odd:predict",
        '{"signature_name": "scalar", "instances": [1.0, 2.0]}',
        200,
        {"predictions": [2.5, 3.0]},
    ),
    (
        "POST /v1/models/odd:predict",
        '{"signature_name": "halves", "inputs": [1.0]}',
        400,
        "Failed to write JSON value for tensor type: bfloat16",
    ),
    # better on purpose
    ("GET /statuspage", "", 404, "Not found: GET /statuspage", "differs: paths"),
    ("BREW /v1/models/foo", "", 400, "Invalid HTTP request received.", "differs: methods"),
    (
        "OPTIONS /v1/models/foo",
        "",
        400,
        "Origin header is missing in CORS preflight",
        "differs: preflight",
    ),
    (
        f"POST {M}:predict",
        " " * (2**23 + 1),
        413,
        "over the limit of 8388608 bytes",
        "differs: size",
    ),
    (f"POST {M}:predict", '{"inputs": ["' + "a" * 3000 + '"]}', 400, "…", "differs: messages"),
]


def ask(client, method, path, body=None, **headers):
    """Returns status, text and type of an answer to a request by any method."""
    data = body.encode() if body else None
    request = urllib.request.Request(client.url + path, data, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, response.read().decode(), response.headers["content-type"]
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(), error.headers["content-type"]


@pytest.mark.parametrize("fact", REST, ids=range(len(REST)))
def test_rest_answers_as_there(client, fact):
    method, _, path = fact[0].partition(" ")
    status, text, media_type = ask(client, method, path, fact[1])
    assert (status, media_type) == (fact[2], "application/json")
    if isinstance(fact[3], str):
        assert fact[3] in json.loads(text)["error"]
    else:
        assert json.loads(text) == fact[3]


def test_a_preflight_of_a_page_is_answered_as_there(client):
    answer = ask(client, "OPTIONS", "/v1/models/foo", Origin="http://example.org")
    assert answer == (200, "", "application/json")


def test_metrics_have_the_names_and_labels_that_they_have_there(client):
    for _ in range(3):
        ask(client, "POST", f"{M}:predict", ROWS)
    ask(client, "POST", f"{M}:predict", "{")
    ask(client, "POST", "/v1/models/unknown:predict", ROWS)
    client.prediction.Predict(predict(x=[1.0]), SECONDS)
    status, text, media_type = ask(client, "GET", "/monitoring/prometheus/metrics")
    assert (status, media_type) == (200, "text/plain")
    lines = dict(line.rpartition(" ")[::2] for line in text.splitlines() if line[0] != "#")
    requests = ':tensorflow:serving:request_count{model_name="half_plus_two",status='
    assert int(lines[requests + '"OK"}']) >= 4
    assert int(lines[requests + '"INVALID_ARGUMENT"}']) >= 1
    for api, entrypoint in (("predict", "REST"), ("Predict", "GRPC")):
        labels = f'model_name="half_plus_two",API="{api}",entrypoint="{entrypoint}"'
        latency = ":tensorflow:serving:request_latency"
        count = int(lines[f"{latency}_count{{{labels}}}"])
        assert count == int(lines[f'{latency}_bucket{{{labels},le="+Inf"}}']) >= 1
        assert int(lines[f"{latency}_sum{{{labels}}}"]) > 0
        assert f'{latency}_bucket{{{labels},le="10"}}' in lines
    loads = ':tensorflow:cc:saved_model:load_attempt_count{model_path="odd/1",status="success"}'
    assert lines[loads] == "1"  # "differs: metrics"
    assert "unknown" not in text


def predict(name="half_plus_two", signature="", **inputs):
    message = predict_pb2.PredictRequest()
    message.model_spec.name, message.model_spec.signature_name = name, signature
    for key, value in inputs.items():
        message.inputs[key].CopyFrom(tf.make_tensor_proto(value))
    return message


def inferred(kind, name="half_plus_two", signature="", values=(80.0,), context=None):
    message = kind()
    message.model_spec.name, message.model_spec.signature_name = name, signature
    fill(message.input, values, context)
    return message


def fill(message, values, context=None):
    features = [{"x": example_of(value)} for value in values]
    one = [tf.train.Example(features=tf.train.Features(feature=feature)) for feature in features]
    if context is None:
        message.example_list.examples.extend(one)
    else:
        message.example_list_with_context.examples.extend([tf.train.Example()])
        message.example_list_with_context.context.CopyFrom(one[0])


def example_of(value):
    return tf.train.Feature(float_list=tf.train.FloatList(value=[value]))


CODE = grpc.StatusCode
CLASSIFICATION = classification_pb2.ClassificationRequest
REGRESSION = regression_pb2.RegressionRequest
RPC = [
    ("Predict", predict_pb2.PredictRequest(), CODE.INVALID_ARGUMENT, "Missing ModelSpec"),
    ("Predict", predict("", x=[1.0]), CODE.INVALID_ARGUMENT, "ModelSpec has no name specified."),
    ("Predict", predict("test", x=[1.0]), CODE.NOT_FOUND, "Latest(test)"),
    ("Predict", predict(), CODE.INVALID_ARGUMENT, "input size does not match signature: 0!=1"),
    (
        "Predict",
        predict(unknown_key1=["a"], unknown_key2=[1.0]),
        CODE.INVALID_ARGUMENT,
        "Sent extra: {unknown_key1,unknown_key2}. Missing but required: {x}.",
    ),
    ("Predict", predict(signature="no", x=[1.0]), CODE.FAILED_PRECONDITION, '"no" not found.'),
    ("Predict", predict(x=True), CODE.INVALID_ARGUMENT, "to be float but bool is provided"),
    ("Predict", predict(x=["a"]), CODE.INVALID_ARGUMENT, "to be float but string is provided"),
    (
        "Predict",
        predict(x=[1]),
        CODE.INVALID_ARGUMENT,
        "Expects input x to be float but int32",
        "differs: types",
    ),
    (
        "Predict",
        predict("odd", "__saved_model_init_op"),
        CODE.UNIMPLEMENTED,
        "is not dense",
        "differs: initializers",
    ),
    ("Predict", predict("odd", "sparse", x=[1.0]), CODE.UNIMPLEMENTED, "Tensor x is not dense"),
    ("Classify", CLASSIFICATION(), CODE.INVALID_ARGUMENT, "Missing ModelSpec"),
    ("Classify", inferred(CLASSIFICATION, "no"), CODE.NOT_FOUND, "Latest(no)"),
    (
        "Classify",
        inferred(CLASSIFICATION, signature="no"),
        CODE.INVALID_ARGUMENT,
        "No signature was found with the name: no",
    ),
    (
        "Classify",
        inferred(CLASSIFICATION, signature="classify_x_to_y", values=()),
        CODE.INVALID_ARGUMENT,
        "Input is empty",
    ),
    (
        "Regress",
        inferred(REGRESSION, signature="regress_x_to_y", values=()),
        CODE.INVALID_ARGUMENT,
        "Input is empty",
    ),
    ("Regress", inferred(REGRESSION), CODE.INVALID_ARGUMENT, "No regression inputs found"),
    (
        "MultiInference",
        inference_pb2.MultiInferenceRequest(),
        CODE.INVALID_ARGUMENT,
        "ModelSpec has no name specified.",
    ),
]


@pytest.mark.parametrize("fact", RPC, ids=range(len(RPC)))
def test_grpc_refuses_as_there(client, fact):
    method, message, code, text = fact[:4]
    with pytest.raises(grpc.RpcError) as caught:
        getattr(client.prediction, method)(message, SECONDS)
    assert caught.value.code() is code
    assert text in caught.value.details()


def test_grpc_predicts_as_there(client):
    response = client.prediction.Predict(predict(x=2.0), SECONDS)
    assert (list(response.outputs["y"].float_val), response.outputs["y"].tensor_shape.dim) == (
        [3.0],
        [],
    )
    assert response.model_spec.signature_name == "serving_default"
    example = tf.train.Example(features=tf.train.Features(feature={"x": example_of(80.0)}))
    message = predict(signature="regress_x_to_y", inputs=[example.SerializeToString()])
    assert list(client.prediction.Predict(message, SECONDS).outputs["outputs"].float_val) == [42.0]
    # Without inputs; with inputs that the signature fills in itself; with a lone string.
    answer = client.prediction.Predict(predict("odd"), SECONDS)
    assert list(answer.outputs["y"].float_val) == [1.0, 2.0]
    answer = client.prediction.Predict(predict("odd", "halves"), SECONDS)
    for name, dtype in (("h", tf.float16), ("b", tf.bfloat16)):
        proto = answer.outputs[name]
        assert proto.half_val and proto.dtype == dtype.as_datatype_enum
        np.testing.assert_array_equal(tf.make_ndarray(proto).astype(np.float32), [1.0, 2.5])
    answer = client.prediction.Predict(predict("odd", "lone_string", x=[b"a\0", b"b"]), SECONDS)
    assert list(answer.outputs["y"].string_val) == [b"a\0b"]


def test_grpc_classifies_and_regresses_as_there(client):
    message = inferred(CLASSIFICATION, signature="labelled", values=(1.0, 2.0))
    response = client.prediction.Classify(message, SECONDS)
    found = [[(c.label, c.score) for c in row.classes] for row in response.result.classifications]
    assert found == [[("a", 1.0), ("b", 1.0)], [("a", 2.0), ("b", 2.0)]]
    assert response.model_spec.signature_name == "labelled"
    assert response.model_spec.version.value == 123
    message = inferred(REGRESSION, signature="regress_x_to_y", values=(80.0, 20.0))
    response = client.prediction.Regress(message, SECONDS)
    assert [one.value for one in response.result.regressions] == [42.0, 12.0]
    message = inferred(REGRESSION, signature="regress_x_to_y", context=True)
    response = client.prediction.Regress(message, SECONDS)
    assert [one.value for one in response.result.regressions] == [42.0]


def multi(*tasks):
    message = inference_pb2.MultiInferenceRequest()
    fill(message.input, [80.0])
    for model, signature, method in tasks:
        task = message.tasks.add(method_name=f"tensorflow/serving/{method}")
        task.model_spec.name, task.model_spec.signature_name = model, signature
    return message


def test_several_signatures_are_asked_at_once_as_there(client):
    good = ("half_plus_two", "regress_x_to_y", "regress")
    other = ("half_plus_two", "classify_x_to_y", "classify")
    response = client.prediction.MultiInference(multi(good, other), SECONDS)
    assert response.results[0].regression_result.regressions[0].value == 42.0
    assert response.results[1].classification_result.classifications[0].classes[0].score == 42.0
    assert response.results[1].model_spec.signature_name == "classify_x_to_y"
    for tasks, code, text in (
        ([good, good], CODE.INVALID_ARGUMENT, "Duplicate evaluation of signature: regress_x_to_y"),
        ([good, ("odd", "a", "regress")], CODE.INVALID_ARGUMENT, "must access the same model name"),
        (
            [("half_plus_two", "no", "regress")],
            CODE.INVALID_ARGUMENT,
            "not found in model graph: no",
        ),
        ([(*good[:2], "other")], CODE.UNIMPLEMENTED, "Unsupported signature method_name"),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            client.prediction.MultiInference(multi(*tasks), SECONDS)
        assert caught.value.code() is code
        assert text in caught.value.details()


def test_a_status_without_a_name_is_not_found_as_there(client):
    message = get_model_status_pb2.GetModelStatusRequest()
    message.model_spec.name = ""
    message.model_spec.version_label = "any"
    with pytest.raises(grpc.RpcError) as caught:
        client.model.GetModelStatus(message, SECONDS)
    assert caught.value.code() is CODE.NOT_FOUND
    assert caught.value.details() == "Could not find any versions of model "


def test_the_table_of_differences_is_complete():
    page = PAGE.read_text()
    table = page[page.index("## Differences") :]
    rows = re.findall(r"^\| `([\w-]+)` \|", table, re.MULTILINE)
    files = pathlib.Path(__file__).parent.glob("test_*.py")
    facts = [name for file in files for name in re.findall(r"differs: ([\w-]+)", file.read_text())]
    assert len(rows) == len(set(rows))
    assert set(rows) == set(facts)
