"""REST as TensorFlow Serving documents it: https://www.tensorflow.org/tfx/serving/api_rest."""

import base64
import json
import re
import urllib.error
import urllib.request

import numpy as np
import pytest

TWO = "/v1/models/half_plus_two"
SHAPES = "/v1/models/shapes"

B64 = {"b64": "aW1hZ2UgYnl0ZXM="}  # "image bytes", as in the documentation
ROWS = [
    {"tag": "foo", "signal": [1, 2, 3, 4, 5], "sensor": [[1, 2], [3, 4]]},
    {"tag": "bar", "signal": [3, 4, 1, 2, 5], "sensor": [[4, 5], [6, 8]]},
]
COLUMNS = {
    "tag": ["foo", "bar"],
    "signal": [[1, 2, 3, 4, 5], [3, 4, 1, 2, 5]],
    "sensor": [[[1, 2], [3, 4]], [[4, 5], [6, 8]]],
}
STATUS = """{
 "model_version_status": [
  {
   "version": "123",
   "state": "AVAILABLE",
   "status": {
    "error_code": "OK",
    "error_message": ""
   }
  }
 ]
}"""


def error(message):
    return json.dumps({"error": message})


# (path, body or None for GET, status, exact text of the answer)
ANSWERS = {
    "rows of one input": (
        f"{TWO}:predict",
        '{"instances": [1.0, 2.0, 5.0]}',
        200,
        '{"predictions": [2.5, 3.0, 4.5]}',
    ),
    "the example of the documentation": (
        "/v1/models/half_plus_three:predict",
        '{"instances": [1.0,2.0,5.0]}',
        200,
        '{"predictions": [3.5, 4.0, 5.5]}',
    ),
    "rows that name their one input": (
        f"{TWO}:predict",
        '{"instances": [{"x": 1.0}, {"x": 2.0}]}',
        200,
        '{"predictions": [2.5, 3.0]}',
    ),
    "columns of one input": (
        f"{TWO}:predict",
        '{"signature_name": "serving_default", "inputs": [3.0, 4.0]}',
        200,
        '{"outputs": [3.5, 4.0]}',
    ),
    "a version in the path": (
        f"{TWO}/versions/123:predict",
        '{"inputs": {"x": [3.0]}}',
        200,
        '{"outputs": [3.5]}',
    ),
    "a path of any case": (
        "/V1/Models/half_plus_two/Versions/123:Predict",
        '{"inputs": [3.0]}',
        200,
        '{"outputs": [3.5]}',
    ),
    "a label in the path": (
        f"{TWO}/labels/canary:predict",
        '{"instances": [1.0]}',
        400,
        error("Unrecognized servable version label: canary"),
    ),
    "named inputs in rows": (  # differs: order
        f"{SHAPES}:predict",
        json.dumps({"instances": ROWS}),
        200,
        '{"predictions": ['
        '{"label": "foo", "sensor": [[2.0, 4.0], [6.0, 8.0]], "total": 15.0}, '
        '{"label": "bar", "sensor": [[8.0, 10.0], [12.0, 16.0]], "total": 15.0}]}',
    ),
    "named inputs in columns": (
        f"{SHAPES}:predict",
        json.dumps({"inputs": COLUMNS}),
        200,
        '{"outputs": {"label": ["foo", "bar"], '
        '"sensor": [[[2.0, 4.0], [6.0, 8.0]], [[8.0, 10.0], [12.0, 16.0]]], '
        '"total": [15.0, 15.0]}}',
    ),
    "binary values in and out": (
        f"{SHAPES}:predict",
        json.dumps({"signature_name": "echo", "instances": [B64, "plain"]}),
        200,
        '{"predictions": [{"text": "image bytes", "text_bytes": {"b64": "aW1hZ2UgYnl0ZXM="}}, '
        '{"text": "plain", "text_bytes": {"b64": "cGxhaW4="}}]}',
    ),
    "one binary value as the only input": (
        f"{SHAPES}:predict",
        json.dumps({"signature_name": "sizes", "inputs": {"image_bytes": [B64]}}),
        200,
        '{"outputs": [11]}',
    ),
    "NaN and infinity both ways": (
        f"{SHAPES}:predict",
        '{"signature_name": "nan", "inputs": [1.5, NaN, Infinity]}',
        200,
        '{"outputs": [[Infinity, -Infinity, NaN, 1.5], [NaN, NaN, NaN, NaN], '
        "[Infinity, -Infinity, NaN, Infinity]]}",
    ),
    "every number as the model's precision reads it": (
        f"{TWO}:predict",
        '{"instances": [-3.6, -4, 16777215, 1e30, -3.3333333, -4.00000001]}',
        200,
        '{"predictions": [0.200000048, 0.0, 8.38861e+06, 5e+29, 0.333333373, 0.0]}',
    ),
    "status": (TWO, None, 200, STATUS),
    "status of a version": (f"{TWO}/versions/123", None, 200, STATUS),
    "status of a version that is not": (
        f"{TWO}/versions/7",
        None,
        404,
        error("Could not find version 7 of model half_plus_two"),
    ),
    "status of a model that is not": (
        "/v1/models/half",
        None,
        404,
        error("Could not find any versions of model half"),
    ),
    "no model": ("/v1/models", None, 400, error("Missing model name in request.")),
    "a model that is not": (
        "/v1/models/half:predict",
        '{"instances": [1.0,5.0]}',
        404,
        error("Servable not found for request: Latest(half)"),
    ),
    "a version that is not": (
        f"{TWO}/versions/99:predict",
        '{"instances": [1]}',
        404,
        error("Servable not found for request: Specific(half_plus_two, 99)"),
    ),
    "a version too large": (
        f"{TWO}/versions/18446744073709551615:predict",
        '{"instances": [1]}',
        400,
        error("Failed to convert version: 18446744073709551615 to numeric."),
    ),
    "another path": ("/v1/foo", None, 400, error("Malformed request: GET /v1/foo")),
    "the wrong method": (
        f"{TWO}:predict",
        None,
        400,
        error(f"Malformed request: GET {TWO}:predict"),
    ),
    "a word for a version": (
        f"{TWO}/versions/HELLO:regress",
        "{}",
        400,
        error(f"Malformed request: POST {TWO}/versions/HELLO:regress"),
    ),
    "an empty body": (
        f"{TWO}:predict",
        "",
        400,
        error("JSON Parse error: The document is empty"),
    ),
    "no JSON": (
        f"{TWO}:predict",
        "instances = [1, 2]",
        400,
        error("JSON Parse error: Invalid value. at offset: 0"),
    ),
    "no object": (
        f"{TWO}:predict",
        "[1]",
        400,
        error("JSON Value: [1] Is not object"),
    ),
    "no input": (f"{TWO}:predict", "{}", 400, error("Missing 'inputs' or 'instances' key")),
    "no rows": (
        f"{TWO}:predict",
        '{"instances": []}',
        400,
        error("JSON Value: {\n    \"instances\": []\n} No values in 'instances' array"),
    ),
    "a string for a number": (
        f"{TWO}:predict",
        '{"instances": [1, "a"]}',
        400,
        error(
            "Failed to process element: 1 of 'instances' list. Error: INVALID_ARGUMENT: "
            'JSON Value: "a" Type: String is not of expected type: float'
        ),
    ),
    "a truth for a number": (
        f"{TWO}:predict",
        '{"inputs": [1, true]}',
        400,
        error("JSON Value: true Type: True is not of expected type: float"),
    ),
    "rows of different shapes": (
        f"{TWO}:predict",
        '{"instances": [[1, 2], [3]]}',
        400,
        error(
            "Failed to process element: 1 of 'instances' list. Error: INVALID_ARGUMENT: "
            "Expecting tensor size: 2 but got: 1"
        ),
    ),
    "a list that ends early": (
        f"{TWO}:predict",
        '{"inputs": [[1, 2], [3]]}',
        400,
        error("Encountered list at unexpected size: 1 at level: 1 expected size: 2"),
    ),
    "a list for a value": (
        f"{TWO}:predict",
        '{"inputs": [1, [2]]}',
        400,
        error("Encountered list at unexpected level: 1 expected < 1"),
    ),
    "a value for a list": (
        f"{TWO}:predict",
        '{"inputs": [[1], 2]}',
        400,
        error("JSON Value: 2 found at incorrect level: 2 in the JSON DOM. Expected at level: 2"),
    ),
    "a number that loses digits": (
        f"{TWO}:predict",
        '{"inputs": [16777217]}',
        200,
        '{"outputs": [8.38861e+06]}',
    ),
    "a number that is too large": (
        f"{TWO}:predict",
        '{"inputs": [1e39, -1e39]}',
        200,
        '{"outputs": [Infinity, -Infinity]}',
    ),
    "a number that no double holds": (
        f"{TWO}:predict",
        '{"inputs": [1e400]}',
        400,
        error("JSON Parse error: Number too big to be stored in double. at offset: 12"),
    ),
    "an input that is missing": (
        f"{SHAPES}:predict",
        '{"inputs": {"tag": ["a"]}}',
        400,
        error("Missing named input: sensor in 'inputs' object."),
    ),
    "a plain list for named inputs": (
        f"{SHAPES}:predict",
        '{"instances": [1]}',
        400,
        error(
            "instances is a plain list, but expecting list of objects as multiple input "
            "tensors required as per tensorinfo_map"
        ),
    ),
    "a signature that is not": (
        f"{TWO}:predict",
        '{"signature_name": "other", "inputs": [1]}',
        400,
        error('Serving signature name: "other" not found in signature def'),
    ),
    "bad base64": (
        f"{SHAPES}:predict",
        '{"signature_name": "echo", "inputs": [{"b64": "*"}]}',
        400,
        error("Unable to base64 decode"),
    ),
    "no rows in the answer": (
        f"{SHAPES}:predict",
        '{"signature_name": "scalar", "inputs": {"x": [1, 2], "factor": 3}}',
        200,
        '{"outputs": [3.0, 6.0]}',
    ),
    "a type without JSON": (
        f"{SHAPES}:predict",
        '{"signature_name": "half", "inputs": [1]}',
        501,
        error("Conversion of JSON Value: 1 to type: half"),
    ),
}


def compact(text):
    """Returns JSON without what lies between its values."""
    return re.sub(r'("(?:[^"\\]|\\.)*")|\s+', lambda match: match[1] or "", text)


@pytest.mark.parametrize("case", ANSWERS)
def test_the_answer_is_exact(client, case):
    path, body, status, text = ANSWERS[case]
    answer = client.ask(path, body if body is None else body.encode())
    assert (answer[0], compact(answer[1])) == (status, compact(text))


def test_metadata_describes_each_signature(client):
    status, text = client.ask(f"{TWO}/metadata")
    answer = json.loads(text)
    assert status == 200
    assert answer["model_spec"] == {
        "name": "half_plus_two",
        "signature_name": "",
        "version": "123",
    }
    signature = answer["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert signature["method_name"] == "tensorflow/serving/predict"
    assert signature["inputs"]["x"]["dtype"] == "DT_FLOAT"
    assert signature["inputs"]["x"]["tensor_shape"] == {
        "dim": [{"size": "-1", "name": ""}],
        "unknown_rank": False,
    }
    assert set(signature["outputs"]) == {"y"}
    assert client.ask(f"{TWO}/versions/123/metadata") == (200, text)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("int8", [-128, 127]),
        ("uint8", [0, 255]),
        ("int16", [-(2**15), 2**15 - 1]),
        ("int32", [-(2**31), 2**31 - 1]),
        ("int64", [-(2**63), 2**63 - 1]),
        ("uint64", [0, 2**64 - 1]),
        ("float64", [0.1, 1e300]),
        ("bool", [True, False]),
    ],
)
def test_each_type_goes_there_and_back(client, name, values):
    others = ["int8", "uint8", "int16", "int32", "int64", "uint64", "float64"]
    inputs = {other: [0, 0] for other in others} | {"bool": [True, True]} | {name: values}
    body = {"signature_name": "typed", "inputs": inputs}
    status, text = client.ask(f"{SHAPES}:predict", body)
    assert status == 200, text
    assert json.loads(text)["outputs"][f"{name}_out"] == values
    if "int" in name:
        body["inputs"][name] = [values[0], values[1] + 1]
        status, text = client.ask(f"{SHAPES}:predict", body)
        assert status == 400 and "is not of expected type" in text


def test_a_float_is_written_with_the_fewest_digits_that_read_back(client):
    values = np.random.default_rng(0).normal(size=100).astype(np.float32)
    values = np.concatenate([values, np.float32([1e-37, 1e38, 1 / 3, 0.1, 123456.7])])
    body = {"signature_name": "scalar", "inputs": {"x": values.tolist(), "factor": 1}}
    _, text = client.ask(f"{SHAPES}:predict", body)
    np.testing.assert_array_equal(np.float32(json.loads(text)["outputs"]), values)
    assert "0.1," in text and "0.333333343" in text


def test_base64_may_have_blanks_and_lines_and_no_padding(client):
    content = bytes(range(100))
    encoded = base64.encodebytes(content).decode()
    for text in (encoded, f" {encoded}\t\r\n", encoded.strip().rstrip("=")):
        body = {"signature_name": "echo", "inputs": [{"b64": text}]}
        _, answer = client.ask(f"{SHAPES}:predict", body)
        assert base64.b64decode(json.loads(answer)["outputs"]["text_bytes"][0]["b64"]) == content


def test_bytes_that_are_no_text_are_answered_as_json(client):
    encoded = base64.b64encode(b"\xff\x00").decode()
    body = {"signature_name": "echo", "inputs": [{"b64": encoded}]}
    status, text = client.ask(f"{SHAPES}:predict", body)
    assert status == 200
    assert json.loads(text)["outputs"] == {"text": ["\ufffd\x00"], "text_bytes": [{"b64": encoded}]}


def test_what_a_graph_refuses_is_the_clients_fault_and_names_no_path(client):
    # differs: failures
    body = {"signature_name": "refuse_negative", "inputs": [-1.0]}
    status, text = client.ask(f"{SHAPES}:predict", body)
    assert status == 400
    assert "refused" in text and "/secret" not in text and "Traceback" not in text
    assert ":0)" not in text  # the name of a node


def test_a_method_that_is_unknown_is_answered_as_json(client):
    for method, message in (
        ("PATCH", f"Malformed request: PATCH {TWO}"),
        ("BREW", "Invalid HTTP request received."),
    ):
        request = urllib.request.Request(client.url + TWO, method=method)
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request, timeout=60)
        assert caught.value.code == 400
        assert json.load(caught.value) == {"error": message}
