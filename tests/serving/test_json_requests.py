"""How TensorFlow Serving reads JSON, fact by fact: util/json_tensor_test.cc and json_tensor.cc.

https://github.com/tensorflow/serving at 9d981c5 (2026-07-30). Each fact is the same here, or better
on purpose: then it names its row in the table of docs/serving.md.
"""

import json

import numpy as np
import pytest

from tfbp.serving import rest_request
from tfbp.serving.rest_request import Bounds, Spec
from tfbp.serving.status import StatusError

BOUNDS = Bounds(depth=32, rows=128)
INF, NAN = float("inf"), float("nan")


def one(dtype):
    return {"default": dtype}


TWO = {"i": "int32", "s": "string"}
# (inputs, body, expected arrays or a part of the error); last, where it differs, the row of the
# table in docs/serving.md
REQUESTS = [
    (one("int32"), '{"instances": [[1,2],[3,4],[5,6]]}', {"default": [[1, 2], [3, 4], [5, 6]]}),
    (
        one("float32"),
        '{"instances": [1, 2.0, 3, 4, 5.003, 0.007, 0.0]}',
        {"default": [1, 2, 3, 4, 5.003, 0.007, 0]},
    ),
    (
        one("float64"),
        '{"instances": [1.0, 2, 3, 4, 0.662, 0, 0.0]}',
        {"default": [1, 2, 3, 4, 0.662, 0, 0]},
    ),
    (one("float32"), '{"instances": [1435774380]}', {"default": [1435774336.0]}),
    (one("float32"), '{"instances": [1435774380.0]}', {"default": [1435774336.0]}),
    (one("float64"), '{"instances": [9007199254740993]}', {"default": [9007199254740992.0]}),
    (
        one("float32"),
        '{"instances": [1.7976931348623157e308, -1.7976931348623157e308]}',
        {"default": [INF, -INF]},
    ),
    (one("float32"), '{"instances": [2.2250738585072014e-308]}', {"default": [0.0]}),
    (
        one("float64"),
        '{"instances": [NaN, Infinity, -Infinity, Inf, -Inf, -NaN]}',
        {"default": [NAN, INF, -INF, INF, -INF, NAN]},
    ),
    (
        one("int32"),
        '{"signature_name": "serving_default", "instances": [[1,2]]}',
        {"default": [[1, 2]]},
    ),
    (one("int32"), '{"instances": [[1,2],[3,4]]}X', {"default": [[1, 2], [3, 4]]}),
    (one("int32"), '{"instances": [1], "instances": [2]}', {"default": [1]}),
    (one("int32"), '\ufeff {"instances": [1]}', {"default": [1]}),
    (
        one("string"),
        '{"instances": [{"b64": "aGVsbG8="}, {"b64": "d29ybGQ="}]}',
        {"default": [b"hello", b"world"]},
    ),
    (
        one("string"),
        '{"instances": [[{"b64": "aGVsbG8="}], [{"b64": "d29ybGQ="}]]}',
        {"default": [[b"hello"], [b"world"]]},
    ),
    (
        one("string"),
        '{"instances": [{"default": [[{"b64": "aGVsbG8="}], [{"b64": "d29ybGQ="}]]}]}',
        {"default": [[[b"hello"], [b"world"]]]},
    ),
    (one("string"), b'{"instances": ["a\xff\xfeb"]}', {"default": [b"a\xff\xfeb"]}),
    (one("string"), r'{"instances": ["\ud83d\ude00\u00e9\/"]}', {"default": ["😀é/".encode()]}),
    (one("string"), r'{"instances": ["\ud83d"]}', "The surrogate pair in string is invalid."),
    (one("string"), b'{"instances": ["\xc3\\udc80"]}', "The surrogate pair in string is invalid."),
    (
        {"i": "int32", "s": "string", "f": "float32", "d": "float64"},
        '{"instances": [{"i": [[1,2],[3,4]], "s": ["foo"], "f": [1.0, NaN], "d": [NaN]},'
        '{"i": [[7,8],[9,0]], "s": ["baz"], "f": [2.0, Infinity], "d": [2.0]}]}',
        {
            "i": [[[1, 2], [3, 4]], [[7, 8], [9, 0]]],
            "s": [[b"foo"], [b"baz"]],
            "f": [[1, NAN], [2, INF]],
            "d": [[NAN], [2]],
        },
    ),
    (one("int32"), '{"inputs": {"default": [[[1,2],[3,4]]]}}', {"default": [[[1, 2], [3, 4]]]}),
    (one("int32"), '{"inputs": [[[1,2],[3,4]]]}', {"default": [[[1, 2], [3, 4]]]}),
    (one("float32"), '{"inputs": 3}', {"default": 3.0}),
    (one("float32"), '{"inputs": []}', {"default": []}),
    (
        {"a": "int32", "b": "string"},
        '{"inputs": {"a": [1], "b": {"b64": "aGVsbG8="}, "more": 1}}',
        {"a": [1], "b": b"hello"},
    ),
    (one("uint32"), '{"instances": [4294967295]}', {"default": [4294967295]}),
    (one("uint64"), '{"instances": [18446744073709551615]}', {"default": [18446744073709551615]}),
    (one("bool"), '{"instances": [true, false]}', {"default": [True, False]}),
    # refused
    (one("int32"), "", "document is empty"),
    (one("int32"), " \n", "JSON Parse error: The document is empty. at offset: 2"),
    (
        one("int32"),
        '{"signature_name": 5, "instances": [[1,2],[3,4],[5,6,7]]}',
        "must be a string value",
    ),
    (one("int32"), '{"instances": [1], "inputs": [1]}', "Not formatted correctly"),
    (one("int32"), '{"instances": [[1,2],[3,4],[5,6,7]]}', "Expecting tensor size: 2 but got: 3"),
    (one("int32"), '{"instances": [[1,2],[3,4],[[5,6]]]}', "Expecting shape [2] but got: [1,2]"),
    (one("int32"), '{"instances": [1, [1]]}', "Expecting shape [] but got: [1]"),
    (
        one("int32"),
        '{"instances": [[1,2],["a", "b"]]}',
        'JSON Value: "a" Type: String is not of expected type: int32',
    ),
    (
        one("int32"),
        '{"instances": [1.0]}',
        "JSON Value: 1.0 Type: Number is not of expected type: int32",
    ),
    (one("int32"), '{"instances": [2147483648]}', "is not of expected type: int32"),
    (one("int64"), '{"instances": [9223372036854775808]}', "is not of expected type: int64"),
    (one("bool"), '{"instances": [1]}', "JSON Value: 1 Type: Number is not of expected type: bool"),
    (
        one("float32"),
        '{"instances": [null]}',
        "JSON Value: null Type: Null is not of expected type: float",
    ),
    (
        one("float32"),
        '{"inputs": [{"b64": "AA=="}]}',
        "Type: Object is not of expected type: float",
    ),
    (one("string"), '{"inputs": [{"b64": 1}]}', "not formatted correctly for base64 data"),
    (one("string"), '{"inputs": [{"b64": "*"}]}', "Unable to base64 decode"),
    (one("float16"), '{"inputs": [1]}', "Conversion of JSON Value: 1 to type: half"),
    (
        one("float16"),
        '{"instances": [1]}',
        "Error: UNIMPLEMENTED: Conversion of JSON Value: 1 to type: half",
    ),
    (one("uint16"), '{"inputs": [1]}', "Conversion of JSON Value: 1 to type: uint16"),
    (TWO, '{"instances": [{"i": [1], "s": ["a"]}, {"i": [[1]], "s": ["a"]}]}', "Expecting shape"),
    (
        TWO,
        '{"instances": [{"i": [1, 2], "s": ["a"]}, {"i": [1], "s": ["a"]}]}',
        "Expecting tensor size",
    ),
    (
        TWO,
        '{"instances": [{"i": [1], "s": ["a"]}, [1]]}',
        "Expecting object but got list at item 1",
    ),
    (
        one("string"),
        '{"instances": [["a"], {"default": ["b"]}]}',
        "Expecting value/list but got object at item 1",
    ),
    (TWO, '{"instances": [{"i": 1}]}', 'JSON object: {\n    "i": 1\n} keys must be equal to: i,s'),
    (TWO, '{"instances": [{"i": 1, "s": "a", "t": 1}]}', "does not have named input: t"),
    (TWO, '{"instances": [1]}', "instances is a plain list"),
    (TWO, '{"inputs": [1]}', "inputs is a plain value/list"),
    (TWO, '{"inputs": {"i": 1}}', "Missing named input: s in 'inputs' object."),
    (one("int32"), '{"instances": 1}', "Expecting 'instances' to be an list/array"),
    (one("int32"), '{"instances": []}', "No values in 'instances' array"),
    (one("int32"), "{}", "Missing 'inputs' or 'instances' key"),
    (one("int32"), "[1, 2.5, 1e30, 12e20]", "JSON Value: [1, 2.5, 1e30, 1.2e21] Is not object"),
    ({}, '{"instances": [1]}', "Failed to get input map for signature: DEFAULT"),
    (one("int32"), '{"signature_name": ' + "[" * 30 + "]" * 30 + "}", "key must be a string value"),
    # rapidjson's messages
    (one("int32"), "instances = [1, 2]", "Invalid value. at offset: 0"),
    (one("int32"), '{"a":nulx}', "Invalid value. at offset: 8"),
    (one("int32"), '{"a":}', "Invalid value. at offset: 5"),
    (one("int32"), '{"a":1,}', "Missing a name for object member. at offset: 7"),
    (one("int32"), '{"a" 1}', "Missing a colon after a name of object member. at offset: 5"),
    (one("int32"), '{"a": 1 2}', "Missing a comma or } after an object member. at offset: 8"),
    (one("int32"), '{"é": [1 2]}', "Missing a comma or ] after an array element. at offset: 10"),
    (one("int32"), '{"a": "b', "Missing a closing quotation mark in string. at offset: 8"),
    (one("int32"), r'{"a": "\x"}', "Invalid escape character in string. at offset: 7"),
    (one("int32"), '{"a": "\n"}', "Invalid encoding in string. at offset: 7"),
    (one("int32"), '{"a": 1.}', "Miss fraction part in number. at offset: 8"),
    (one("int32"), '{"a": 1e}', "Miss exponent in number. at offset: 8"),
    (one("int32"), '{"a": 1e400}', "Number too big to be stored in double. at offset: 6"),
    # better on purpose
    (
        one("uint8"),
        '{"instances": [300]}',
        "JSON Value: 300 Type: Number is not of expected type: uint8",
        "differs: integers",
    ),
    (
        one("int32"),
        '{"instances": [1], "nested":' + "[" * 40 + "]" * 40 + "}",
        "over the limit of 32",
        "differs: depth",
    ),
    (
        one("int32"),
        '{"instances": [{"default": 1, "default": 2}]}',
        {"default": [1]},
        "differs: duplicates",
    ),
    (
        one("int32"),
        json.dumps({"instances": [1] * 129}),
        "Task size 129 is larger than maximum",
        "differs: rows",
    ),
]


@pytest.mark.parametrize("fact", REQUESTS, ids=range(len(REQUESTS)))
def test_a_request_is_read_as_there(fact):
    inputs, body, expected = fact[:3]
    specs = {name: Spec(dtype, True) for name, dtype in inputs.items()}
    content = body if isinstance(body, bytes) else body.encode()
    signatures = {"serving_default": specs}
    if isinstance(expected, str):
        with pytest.raises(StatusError) as caught:
            rest_request.predict(content, signatures, BOUNDS)
        assert expected in caught.value.message
        return
    arrays = rest_request.predict(content, signatures, BOUNDS).arrays
    assert arrays.keys() == expected.keys()
    for name, value in expected.items():
        dtype = object if inputs[name] == "string" else inputs[name]
        assert arrays[name].dtype == dtype
        np.testing.assert_array_equal(arrays[name], np.array(value, dtype))
