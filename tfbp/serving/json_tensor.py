"""JSON values as arrays, with the error texts of TensorFlow Serving (util/json_tensor.cc)."""

import base64
import binascii
import itertools
import string
from typing import Any

import numpy as np

from tfbp.serving import json_text
from tfbp.serving.status import Code, StatusError, invalid

# The types that JSON can be converted to, by TensorFlow's name. Strings are arrays of bytes.
FLOATS = {"float32": np.float32, "float64": np.float64}
INTEGERS = {
    name: np.dtype(name)
    for name in ("int8", "int16", "int32", "int64", "uint8", "uint32", "uint64")
}
# The names that differ in messages (DataTypeString in TensorFlow's framework/types.cc).
_NAMES = {"float32": "float", "float64": "double", "float16": "half"}
_TYPES = {dict: "Object", list: "Array", str: "String", int: "Number", float: "Number"}
_BLANKS = string.whitespace.encode()

Array = np.ndarray[Any, Any]


def tensor(value: Any, dtype: str) -> Array:
    """Returns a JSON value, a number, a string or nested lists of them, as an array.

    Args:
        value: what `json_document.parse` has read.
        dtype: TensorFlow's name of the type.

    Raises:
        StatusError: it is ragged or of another type (INVALID_ARGUMENT), or no JSON can be of the
            type (UNIMPLEMENTED).
    """
    shape, level = [], [value]
    while level and type(level[0]) is list:
        size = len(level[0])
        if set(map(type, level)) != {list} or set(map(len, level)) != {size}:
            raise _explained(value, dtype)
        shape.append(size)
        level = list(itertools.chain.from_iterable(level))
    if not level:
        return np.empty(shape, object if dtype == "string" else dtype)
    if not set(map(type, level)) <= _types(dtype):
        raise _explained(value, dtype)
    if dtype == "string":
        array = np.empty(len(level), object)
        array[:] = [string_of(one) for one in level]
        return array.reshape(shape)
    if dtype == "bool":
        return np.array(level, bool).reshape(shape)
    if dtype in INTEGERS:
        limits = np.iinfo(INTEGERS[dtype])
        if min(level) < limits.min or max(level) > limits.max:
            raise _explained(value, dtype)
        return np.array(level, INTEGERS[dtype]).reshape(shape)
    numbers = np.array(level, np.float64)
    with np.errstate(over="ignore"):  # to infinity, as a cast in C does
        return numbers.astype(FLOATS[dtype], copy=False).reshape(shape)


def string_of(value: Any) -> bytes:
    """Returns the bytes of a JSON string, or of `{"b64": …}`.

    In that padding may be left out, and blanks and line breaks put in.

    Raises:
        StatusError: it is neither.
    """
    if type(value) is not dict:
        return value.encode("utf-8", "surrogateescape")
    if not is_binary(value):
        text = json_text.shown(value)
        raise invalid(f"JSON Value: {text} not formatted correctly for base64 data")
    try:
        text = value["b64"].encode("ascii").translate(None, _BLANKS)
        return base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise invalid("Unable to base64 decode") from None


def is_binary(value: Any) -> bool:
    """Returns whether a value is binary data: an object whose only key is `b64`, with a string."""
    return type(value) is dict and value.keys() == {"b64"} and type(value["b64"]) is str


def json_type(value: Any) -> str:
    """Returns the name of a value's type in messages: `Null`, `True`, `Number` …"""
    return "Null" if value is None else _TYPES.get(type(value), str(value))


def name(dtype: str) -> str:
    """Returns the name of a type in messages: `float` for float32."""
    return _NAMES.get(dtype, dtype)


def _types(dtype: str) -> set[type]:
    """Returns the types of JSON values that can be of a dtype; none for one that none can be."""
    if dtype in FLOATS:
        return {int, float}
    if dtype in INTEGERS:
        return {int}
    if dtype == "bool":
        return {bool}
    return {str, dict} if dtype == "string" else set()


def _explained(value: Any, dtype: str) -> StatusError:
    """Returns what is wrong with the first value that is wrong."""
    shape, first = [], value
    while type(first) is list:
        shape.append(len(first))
        first = first[0] if first else None
    try:
        _check(value, dtype, 0, shape)
    except StatusError as error:
        return error
    raise AssertionError("a value that is right was refused")


def _check(value: Any, dtype: str, level: int, shape: list[int]) -> None:
    if type(value) is not list:
        if level != len(shape):
            raise invalid(
                f"JSON Value: {json_text.shown(value)} found at incorrect level: {level + 1} "
                f"in the JSON DOM. Expected at level: {len(shape)}"
            )
        _check_value(value, dtype)
        return
    if level >= len(shape):
        raise invalid(f"Encountered list at unexpected level: {level} expected < {len(shape)}")
    if len(value) != shape[level]:
        raise invalid(
            f"Encountered list at unexpected size: {len(value)} at level: {level} "
            f"expected size: {shape[level]}"
        )
    for one in value:
        _check(one, dtype, level + 1, shape)


def _check_value(value: Any, dtype: str) -> None:
    types = _types(dtype)
    if not types and type(value) is not dict:
        raise StatusError(
            Code.UNIMPLEMENTED,
            f"Conversion of JSON Value: {json_text.shown(value)} to type: {name(dtype)}",
        )
    fits = type(value) in types
    if fits and dtype in INTEGERS:
        limits = np.iinfo(INTEGERS[dtype])
        fits = limits.min <= value <= limits.max
    if not fits:
        raise invalid(
            f"JSON Value: {json_text.shown(value)} Type: {json_type(value)} "
            f"is not of expected type: {name(dtype)}"
        )
    if dtype == "string":
        string_of(value)
