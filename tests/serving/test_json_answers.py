"""How TensorFlow Serving writes JSON, and reads examples: util/json_tensor_test.cc, json_tensor.cc.

https://github.com/tensorflow/serving at 9d981c5 (2026-07-30). Each fact is the same here, or better
on purpose: then it names its row in the table of docs/serving.md.
"""

import numpy as np
import pytest
import tensorflow as tf

from tfbp.serving import examples, rest_answer, rest_request
from tfbp.serving.rest_request import Bounds
from tfbp.serving.status import StatusError

BOUNDS = Bounds(depth=32, rows=128)
INF, NAN = float("inf"), float("nan")
FLOATS = np.float32([[9000000, 999999, 0.5], [0.0003, 0.00003, 555557.5]])
CUBE = np.int32([[[1, 2], [3, 4]], [[7, 8], [9, 0]]])
WORDS = np.array([[b"hello"], [b"tf"]], object)
# (function, outputs, exact text or a part of the error)
TEXTS = [
    ("rows", {"a": CUBE}, '{\n    "predictions": [[[1, 2], [3, 4]], [[7, 8], [9, 0]]\n    ]\n}'),
    ("rows", {"a": np.int32([1, 2])}, '{\n    "predictions": [1, 2\n    ]\n}'),
    (
        "columns",
        {"a": np.int32([[1, 2], [3, 4]])},
        '{\n    "outputs": [\n        [\n            1,\n            2\n        ],\n'
        "        [\n            3,\n            4\n        ]\n    ]\n}",
    ),
    (
        "rows",
        {"a_bytes": WORDS},
        '{\n    "predictions": [[{\n                "b64": "aGVsbG8="\n'
        '            }], [{\n                "b64": "dGY="\n            }]\n    ]\n}',
    ),
    (
        "rows",
        {"a": FLOATS},
        '{\n    "predictions": [[9e+06, 999999.0, 0.5], [0.0003, 3e-05, 555557.5]\n    ]\n}',
    ),
    (
        "rows",
        {"a": np.float32([NAN, INF, 3, -INF])},
        '{\n    "predictions": [NaN, Infinity, 3.0, -Infinity\n    ]\n}',
    ),
    (
        "rows",
        {"d": np.float64([8, 9]), "i": CUBE, "s": WORDS},
        '{\n    "predictions": [\n        {\n            "d": 8.0,\n'
        '            "i": [[1, 2], [3, 4]],\n            "s": ["hello"]\n        },'
        '\n        {\n            "d": 9.0,\n            "i": [[7, 8], [9, 0]],\n'
        '            "s": ["tf"]\n        }\n    ]\n}',
    ),
    (
        "columns",
        {"a": np.float32(2), "b": np.array(b"x", object)},
        '{\n    "outputs": {\n        "a": 2.0,\n        "b": "x"\n    }\n}',
    ),
    ("rows", {"a": np.zeros([0, 2], np.int32)}, '{\n    "predictions": []\n}'),
    (
        "rows",
        {"a": np.zeros([0, 1, 2], object), "b": np.zeros([0, 3], np.float32)},
        '{\n    "predictions": []\n}',
    ),
    ("rows", {"a": np.zeros([2, 0], np.int32)}, '{\n    "predictions": [[], []\n    ]\n}'),
    ("rows", {}, "Cannot convert empty tensor map to JSON"),
    ("rows", {"a": np.complex64([1])}, "Failed to write JSON value for tensor type: complex64"),
    ("columns", {"a": np.float16([1])}, "Failed to write JSON value for tensor type: half"),
    ("columns", {"a": np.uint16([1])}, "Failed to write JSON value for tensor type: uint16"),
    ("rows", {"a": np.int32(1)}, "Tensor name: a has no shape information"),
    (
        "rows",
        {"a": CUBE, "b": np.int32([1])},
        "Tensor name: b has inconsistent batch size: 1 expecting: 2",
    ),
    ("rows", {"a": np.zeros([0], np.int32), "b": np.int32([1])}, "inconsistent batch size"),
    (
        "columns",
        {"a": np.array(b'\x1b\x07/"\\\n', object)},
        '{\n    "outputs": "\\u001B\\u0007/\\"\\\\\\n"\n}',
    ),
    (
        "columns",
        {"a": np.array(b"\xff", object)},
        '{\n    "outputs": "\ufffd"\n}',
        "differs: bytes",
    ),
    (
        "rows",
        {"b": np.int32([1]), "a": np.int32([2])},
        '{\n    "predictions": [\n        {\n            "b": 1,\n            "a": 2\n'
        "        }\n    ]\n}",
    ),
]


@pytest.mark.parametrize("fact", TEXTS, ids=range(len(TEXTS)))
def test_an_answer_is_written_as_there(fact):
    function, outputs, expected = fact[:3]
    outputs = {name: np.asarray(value) for name, value in outputs.items()}
    if expected.startswith("{"):
        assert getattr(rest_answer, function)(outputs) == expected
    else:
        with pytest.raises(StatusError) as caught:
            getattr(rest_answer, function)(outputs)
        assert expected in caught.value.message


def test_results_are_written_as_there():
    scores = np.float32([[0.5, 1]])
    labels = np.array([[b"a", b"b"]], object)
    assert rest_answer.classifications(labels, scores) == (
        '{\n    "results": [[["a", 0.5], ["b", 1.0]]\n    ]\n}'
    )
    values = np.float32([0.2, INF, 1, -INF, NAN])
    assert rest_answer.regressions(values) == (
        '{\n    "results": [0.2, Infinity, 1.0, -Infinity, NaN]\n}'
    )


EXAMPLES = [
    (
        {"names": ["foo", "bar"], "ratings": [8.0, 9.0], "age": 20},
        {"names": [b"foo", b"bar"], "ratings": [8.0, 9.0], "age": [20]},
    ),
    (
        {"names": ["baz", {"b64": "aGVsbG8="}], "mix": [1, True, False]},
        {"names": [b"baz", b"hello"], "mix": [1, 1, 0]},
    ),
    (
        {"ratings": [8.0, NAN, INF], "low": -(2**63)},
        {"ratings": [8.0, NAN, INF], "low": [-(2**63)]},
    ),
    ({"none": []}, {"none": []}),
    ([], "Example must be JSON object but got JSON Array"),
    ({"names": [10, None]}, "Feature: names has element with unexpected JSON type: Null"),
    ({"names": [10, 10.0]}, "Unexpected element type in feature: names expecting type: int64"),
    ({"names": [10, {"test": 10}]}, "names has element with unexpected JSON type: Object"),
    ({"names": [[10], 20]}, "names has element with unexpected JSON type: Array"),
    ({"names": [20, 18446744073709551603]}, "Only int64_t is supported"),
]


@pytest.mark.parametrize("value, expected", EXAMPLES)
def test_an_example_is_read_as_there(value, expected):
    if isinstance(expected, str):
        with pytest.raises(StatusError) as caught:
            examples.serialized(value)
        assert expected in caught.value.message
        return
    features = tf.train.Example.FromString(examples.serialized(value)).features.feature
    assert features.keys() == expected.keys()
    for name, values in expected.items():
        kind = features[name].WhichOneof("kind")
        assert kind or not values
        np.testing.assert_array_equal(getattr(features[name], kind).value if kind else [], values)


BODIES = [
    ('{"examples": [{"x": 1.0}, {"x": 2.0}], "context": {"y": 3}}', 2),
    ('{"examples": [{"x": 1, "x": 2}], "examples": []}', 1),
    ('{"signature_name": 5, "examples": [{}]}', "'signature_name' key must be a string"),
    ("{}", "When method is classify, key 'examples' is expected and was not found"),
    ('{"examples": {"x": 1}}', "Expecting 'examples' value to be an list/array"),
    ('{"examples": []}', "'examples' value is an empty array"),
    ('{"examples": [[{"x": 1}]]}', "Example must be JSON object but got JSON Array"),
]


@pytest.mark.parametrize("body, expected", BODIES)
def test_examples_are_read_as_there(body, expected):
    if isinstance(expected, str):
        with pytest.raises(StatusError) as caught:
            rest_request.inspect(body.encode(), BOUNDS)
        assert expected in caught.value.message
        return
    (array,) = rest_request.inspect(body.encode(), BOUNDS).arrays.values()
    assert len(array) == expected
    features = tf.train.Example.FromString(array[0]).features.feature
    if "context" in body:
        assert features["y"].int64_list.value == [3]
    else:  # The last of duplicate features counts, the first of duplicate members of the body.
        assert features["x"].int64_list.value == [2]
