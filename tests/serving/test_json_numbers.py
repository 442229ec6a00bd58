import json
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfbp.serving import json_numbers, rest_request
from tfbp.serving.rest_request import Bounds, Spec
from tfbp.serving.status import StatusError

BOUNDS = Bounds(depth=5, rows=4)
NUMBERS = st.one_of(
    st.integers(-(2**64), 2**65),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(
        [0, -1, -(2**63) - 1, 2**64, 10**40, 2**24 + 1, 2**53 + 1, 255, 256, -0.0, 1e39, 5e-324]
    ),
)


def read(body, dtype, monkeypatch=None):
    """Returns what a body holds for a signature of one input, or why it holds nothing."""
    signatures = {"serving_default": {"x": Spec(dtype, True)}, "other": {"z": Spec("int32", True)}}
    if monkeypatch is not None:
        monkeypatch.setattr(json_numbers, "read", lambda *_: None)
    try:
        inputs = rest_request.predict(body, signatures, BOUNDS)
    except StatusError as error:
        return error.code, error.message
    ((name, array),) = inputs.arrays.items()
    return inputs.signature, inputs.as_rows, name, array.dtype, array.shape, array.tobytes()


def same(body, dtype):
    """Asserts that numbers are read, or refused, as the exact parser does."""
    with pytest.MonkeyPatch.context() as patch:
        exact = read(body, dtype, patch)
    assert read(body, dtype) == exact, body


@pytest.mark.parametrize("dtype", ["float32", "float64", "int8", "int64", "uint64", "bool"])
@pytest.mark.parametrize(
    "text",
    [
        b"[[1, 2], [3, 4]]",
        b"[[1, 2], [3]]",
        b"[[], []]",
        b"[[1], []]",
        b"[]",
        b"[[]]",
        b"[1, 2.0]",
        b"[-0, -0.0]",
        b"[127, 128]",
        b"[-129]",
        b"[-9223372036854775808, -9223372036854775809]",
        b"[-18446744073709551617]",
        b"[-1234567890123456789012345678901234567890]",
        b"[18446744073709551615, 18446744073709551616]",
        b"[9223372036854775807, 9223372036854775808]",
        b"[16777217, 9007199254740993]",
        b"[1e400]",
        b"[1e39, -1e39]",
        b"[01]",
        b"[+1]",
        b"[1.]",
        b"[.5]",
        b"[1e]",
        b"[NaN, Infinity]",
        b"[true]",
        b"[null]",
        b"[1,]",
        b"[,1]",
        b"[1[,2]]",
        b"[[1[,2],3]]",
        b"[1, 2, 3, 4, 5]",
        b"[[[[1]]]]",
        b"[[[[[1]]]]]",
        b"[1 2]",
        b"[1\x002]",
    ],
)
def test_a_list_is_read_as_the_exact_parser_reads_it(text, dtype):
    for body in (
        b'{"instances": %s}',
        b' \n{"inputs" :%s }\t',
        b'{"signature_name": "other", "instances": %s}',
        b'{"instances": %s, "signature_name": "none"}',
        b'{"instances": %s, "instances": [1]}',
        b'{"instances": %s, "signature_name": [1]}',
        b'{"instances": %s, "inputs": "x"}',
        b'{"more": "]", "instances": %s}',
        b'{"inst\\u0061nces": %s}',
        b'{"instances": %s} and more',
        b'\xef\xbb\xbf{"instances": %s}',
        b'{"instances": %s, "\xff": "x"}',
        b'{"instances": %s',
        b"%s",
    ):
        same(body % text, dtype)


@given(
    st.recursive(st.lists(NUMBERS, max_size=3), lambda inner: st.lists(inner, max_size=3)),
    st.sampled_from(["float32", "float64", "int32", "uint64"]),
)
def test_any_nest_of_numbers_is_read_as_the_exact_parser_reads_it(value, dtype):
    same(json.dumps({"instances": value}).encode(), dtype)


def test_what_holds_nothing_but_numbers_takes_the_fast_way():
    for body in (
        b'{"instances": [[[1], [2]], [[3], [4.5]]]}',
        b'{"signature_name": "", "inputs": [[[1], [2]], [[3], [4.5]]]}',
    ):
        numbers = json_numbers.read(body, 4)
        np.testing.assert_array_equal(numbers.array("float32"), [[[1], [2]], [[3], [4.5]]])
        assert numbers.array("int32") is None
    assert json_numbers.read(b'{"instances": [{"x": 1}]}', 4) is None


def test_deep_lists_are_left_alone_at_once():
    began = time.process_time()
    assert json_numbers.read(b'{"instances": %s1%s}' % (b"[" * 100_000, b"]" * 100_000), 32) is None
    assert time.process_time() - began < 0.5
