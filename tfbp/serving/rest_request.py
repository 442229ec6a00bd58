"""The body of a REST request as tensors: TensorFlow Serving's JSON, with its error texts.

The mapping is that of https://www.tensorflow.org/tfx/serving/api_rest.
"""

import base64
import binascii
import itertools
import json
import math
import re
import string
from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from tfbp.serving.limits import Limits
from tfbp.serving.signature import batched, check_rows
from tfbp.serving.status import Code, StatusError, invalid

Specs = Mapping[str, tf.TensorSpec]

# Characters of a JSON value that an error shows.
_SHOWN = 200
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
# What a number too large for a double has: an exponent of three digits, or very many digits. They
# are looked for among zeros, which takes a twentieth of the time of a regular expression.
_HUGE = (b"e000", b"e+000", b"0" * 200)
_ZEROS = bytes.maketrans(b"123456789E", b"000000000e")
_BLANKS = string.whitespace.encode()
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_BITS = {tf.float32: 24, tf.float64: 53}  # of the significand: integers up to 2**bits - 1 are exact
_INTEGERS = {
    tf.int8,
    tf.int16,
    tf.int32,
    tf.int64,
    tf.uint8,
    tf.uint16,
    tf.uint32,
    tf.uint64,
}
_TYPES = {dict: "Object", list: "Array", str: "String", int: "Number", float: "Number"}
# What rapidjson says, by the beginning of what Python's parser says.
_PARSE_ERRORS = {
    "Extra data": "The document root must not be followed by other values.",
    "Expecting property name": "Missing a name for object member.",
    "Expecting ':'": "Missing a colon after a name of object member.",
    "Expecting ','": "Missing a comma or } or ] after a member or an element.",
    "Unterminated string": "Missing a closing quotation mark in string.",
    "Invalid \\": "Invalid escape character in string.",
    "Invalid control": "Invalid encoding in string.",
}


def parse(body: bytes, max_depth: int) -> dict:
    """Returns the JSON object of a body; NaN, Infinity and -Infinity are numbers in it.

    Raises:
        StatusError: it is no JSON object, or nests deeper than `max_depth` (INVALID_ARGUMENT).
    """
    if not body.strip():
        raise invalid("JSON Parse error: The document is empty")
    depth = _depth(body)
    if depth > max_depth:
        raise invalid(f"JSON Parse error: nested {depth} deep, over the limit of {max_depth}")
    try:
        # A parser of floats of our own takes several times as long.
        zeros = body.translate(_ZEROS)
        parse_float = _finite if any(mark in zeros for mark in _HUGE) else None
        document = json.loads(body.decode("utf-8-sig"), parse_float=parse_float)
    except json.JSONDecodeError as error:
        known = (text for start, text in _PARSE_ERRORS.items() if error.msg.startswith(start))
        offset = len(error.doc[: error.pos].encode())
        message = next(known, "Invalid value.")
        raise invalid(f"JSON Parse error: {message} at offset: {offset}") from None
    except UnicodeDecodeError as error:
        raise invalid(
            f"JSON Parse error: Invalid encoding in string. at offset: {error.start}"
        ) from None
    except ValueError:  # from _finite, or an integer of thousands of digits
        raise invalid("JSON Parse error: Number too big to be stored in double.") from None
    if type(document) is not dict:
        raise _format(document, "Is not object")
    return document


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(text)
    return number


def signature_name(document: dict) -> str:
    """Returns the `signature_name` of a request, "" where it has none.

    Raises:
        StatusError: it is no string.
    """
    name = document.get("signature_name", "")
    if type(name) is not str:
        raise _format(
            document, "not formatted correctly. 'signature_name' key must be a string value."
        )
    return name


def inputs(document: dict, specs: Specs, limits: Limits) -> tuple[dict[str, np.ndarray], bool]:
    """Returns the input tensors of a request, and whether they came as rows (`instances`).

    Args:
        document: what `parse` returned.
        specs: what the signature takes, by name.
        limits: how many rows there may be. More are refused before any value is looked at.

    Raises:
        StatusError: they are not what the signature takes.
    """
    if "instances" in document and "inputs" in document:
        raise _format(
            document,
            "Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist ",
        )
    if "instances" in document:
        instances = document["instances"]
        if type(instances) is not list:
            raise _format(document, "Excepting 'instances' to be an list/array")
        if not instances:
            raise _format(document, "No values in 'instances' array")
        if any(map(batched, specs.values())):
            check_rows(len(instances), limits)
        return _rows(instances, specs), True
    if "inputs" in document:
        return _columns(document["inputs"], specs, limits), False
    raise invalid("Missing 'inputs' or 'instances' key")


def _depth(body: bytes) -> int:
    """Returns how deep lists and objects nest, without recursion and in linear time."""
    brackets = np.frombuffer(_STRING.sub(b"", body).translate(None, _NO_BRACKETS), np.uint8)
    # Of "[", "{", "]" and "}" in ASCII, the opening ones have bit 1.
    return int(np.cumsum((brackets & 2).astype(np.int32) - 1).max(initial=0))


def _rows(instances: list, specs: Specs) -> dict[str, np.ndarray]:
    if not _named(instances[0]):
        if len(specs) > 1:
            raise invalid(
                "instances is a plain list, but expecting list of objects as multiple input "
                "tensors required as per tensorinfo_map"
            )
        for number, element in enumerate(instances):
            if _named(element):
                raise invalid(f"Expecting value/list but got object at item {number} of input list")
        ((name, spec),) = specs.items()
        return {name: _column(instances, spec, "")}
    for number, element in enumerate(instances):
        if not _named(element):
            raise invalid(f"Expecting object but got list at item {number} of input list")
        if element.keys() != specs.keys():
            where = f"Failed to process element: {number}"
            for key in element.keys() - specs.keys():
                raise invalid(
                    f"{where} key: {key} of 'instances' list. Error: INVALID_ARGUMENT: "
                    f"JSON object: does not have named input: {key}"
                )
            raise invalid(
                f"{where} of 'instances' list. JSON object: {_text(element)} "
                f"must only have keys: {','.join(sorted(specs))}"
            )
    return {
        name: _column([element[name] for element in instances], spec, f" key: {name}")
        for name, spec in specs.items()
    }


def _column(values: list, spec: tf.TensorSpec, key: str) -> np.ndarray:
    """Returns one input of all rows. Where it is wrong, says in which row."""
    try:
        return _tensor(values, spec.dtype)
    except StatusError as error:
        if error.code is not Code.INVALID_ARGUMENT:
            raise
        fault = error
    first = None
    for number, value in enumerate(values):
        try:
            tensor = _tensor(value, spec.dtype)
            first = tensor if first is None else first
            if tensor.size != first.size:
                raise invalid(f"Expecting tensor size: {first.size} but got: {tensor.size}")
            if tensor.shape != first.shape:
                shapes = [f"[{','.join(map(str, one.shape))}]" for one in (first, tensor)]
                raise invalid(f"Expecting shape {shapes[0]} but got: {shapes[1]}")
        except StatusError as error:
            raise invalid(
                f"Failed to process element: {number}{key} of 'instances' list. "
                f"Error: INVALID_ARGUMENT: {error.message}"
            ) from None
    raise fault


def _columns(value, specs: Specs, limits: Limits) -> dict[str, np.ndarray]:
    if not _named(value):
        if len(specs) > 1:
            raise invalid(
                "inputs is a plain value/list, but expecting an object as multiple input tensors "
                "required as per tensorinfo_map"
            )
        value = dict.fromkeys(specs, value)
    for name, spec in specs.items():
        if name not in value:
            raise invalid(f"Missing named input: {name} in 'inputs' object.")
        if batched(spec) and type(value[name]) is list:
            check_rows(len(value[name]), limits)
    return {name: _tensor(value[name], spec.dtype) for name, spec in specs.items()}


def _tensor(value, dtype: tf.DType) -> np.ndarray:
    """Returns a JSON value, a number, a string or nested lists of them, as an array."""
    shape, level = [], [value]
    while level and type(level[0]) is list:
        size = len(level[0])
        if set(map(type, level)) != {list} or set(map(len, level)) != {size}:
            _explain(value, dtype, 0, _shape(value))
        shape.append(size)
        level = list(itertools.chain.from_iterable(level))
    if not _plain(set(map(type, level)), dtype):
        _explain(value, dtype, 0, shape)
    if dtype == tf.string:
        array = np.empty(len(level), object)
        array[:] = [_bytes(one) for one in level]
        return array.reshape(shape)
    if dtype in _INTEGERS and level:
        low, high = max(dtype.min, -(2**63)), min(dtype.max, 2**64 - 1)
        if min(level) < low or max(level) > high:
            _explain(value, dtype, 0, shape)
    if dtype in _BITS and level:
        try:
            level = np.array(level, np.float64)
        except OverflowError:
            _explain(value, dtype, 0, shape)
        if np.abs(level[np.isfinite(level)]).max(initial=0) >= 2 ** _BITS[dtype]:
            _explain(value, dtype, 0, shape)
    with np.errstate(over="ignore"):  # to infinity, which `_explain` has let pass
        return np.array(level, dtype.as_numpy_dtype).reshape(shape)


def _plain(types: set[type], dtype: tf.DType) -> bool:
    """Returns whether JSON values of these types can all be of the dtype."""
    if dtype in _BITS:
        return types <= {int, float}
    if dtype in _INTEGERS:
        return types <= {int}
    if dtype == tf.bool:
        return types <= {bool}
    if dtype == tf.string:
        return types <= {str, dict}
    raise StatusError(Code.UNIMPLEMENTED, f"Conversion of JSON Value to type: {dtype.name}")


def _explain(value, dtype: tf.DType, level: int, shape: list[int]) -> None:
    """Raises what is wrong with the first value that is wrong; returns where none is."""
    if type(value) is not list:
        if level != len(shape):
            raise invalid(
                f"JSON Value: {_text(value)} found at incorrect level: {level + 1} "
                f"in the JSON DOM. Expected at level: {len(shape)}"
            )
        _check(value, dtype)
        return
    if level >= len(shape):
        raise invalid(f"Encountered list at unexpected level: {level} expected < {len(shape)}")
    if len(value) != shape[level]:
        raise invalid(
            f"Encountered list at unexpected size: {len(value)} at level: {level} "
            f"expected size: {shape[level]}"
        )
    for one in value:
        _explain(one, dtype, level + 1, shape)


def _check(value, dtype: tf.DType) -> None:
    fits = _plain({type(value)}, dtype)
    if fits and dtype in _INTEGERS:
        fits = dtype.min <= value <= dtype.max
    if not fits:
        raise invalid(
            f"JSON Value: {_text(value)} Type: {_type(value)} "
            f"is not of expected type: {_name(dtype)}"
        )
    if dtype in _BITS:
        exact = type(value) is float or abs(value) < 2 ** _BITS[dtype]
        if not exact or float(dtype.max) < abs(value) < float("inf"):
            raise invalid(
                f"Cannot convert JSON value: {_text(value)} to {_name(dtype)} "
                "without loss of precision."
            )


def _bytes(value: str | dict) -> bytes:
    """Returns the string of a JSON string, or of `{"b64": …}`.

    In that padding may be left out, and blanks and line breaks put in.
    """
    if type(value) is dict:
        if not _binary(value):
            raise invalid(f"JSON Value: {_text(value)} not formatted correctly for base64 data")
        try:
            text = value["b64"].encode("ascii").translate(None, _BLANKS)
            return base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
        except (binascii.Error, ValueError):
            raise invalid("Unable to base64 decode") from None
    try:
        return value.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        raise invalid("JSON Parse error: The surrogate pair in string is invalid.") from None


def _shape(value) -> list[int]:
    """Returns the shape that the first elements announce."""
    shape = []
    while type(value) is list:
        shape.append(len(value))
        value = value[0] if value else None
    return shape


def _named(value) -> bool:
    return type(value) is dict and not _binary(value)


def _binary(value) -> bool:
    return type(value) is dict and value.keys() == {"b64"} and type(value["b64"]) is str


def _name(dtype: tf.DType) -> str:
    return {tf.float32: "float", tf.float64: "double"}.get(dtype, dtype.name)


def _type(value) -> str:
    return "Null" if value is None else _TYPES.get(type(value), str(value))


def _text(value) -> str:
    """Returns JSON to show, cut after `_SHOWN` characters without writing the rest."""
    text = ""
    for part in json.JSONEncoder(indent=4, ensure_ascii=False).iterencode(value):
        text += part
        if len(text) > _SHOWN:
            return text[:_SHOWN] + "…"
    return text


def _format(document, message: str) -> StatusError:
    return invalid(f"JSON Value: {_text(document)} {message}")
